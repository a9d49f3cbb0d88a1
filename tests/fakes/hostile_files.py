"""Makes documents that are wrong in a known way, 50 of each of four formats: what parsers must survive (promise H1).

Traps are built one by one; the rest are good files cut, flipped and misnamed at random, from a seed. All is made in
memory, by plain Python. Does not know what the parsers make of it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.fakes.hostile_office import DOCX_TRAPS
from tests.fakes.hostile_pdf import PDF_TRAPS
from tests.fakes.hostile_text import HTML_TRAPS, MD_TRAPS

TRAPS: Mapping[str, Mapping[str, Callable[[], bytes]]] = {
    "pdf": PDF_TRAPS,
    "docx": DOCX_TRAPS,
    "html": HTML_TRAPS,
    "md": MD_TRAPS,
}
_WRONG_ENDINGS = {"pdf": "docx", "docx": "pdf", "html": "pdf", "md": "docx"}


def make_hostile_files(
    seed: int, count: int, samples: Mapping[str, Sequence[bytes]]
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield a name and what makes the bytes, `count` for each format: at most half of them traps, then mutations.

    Args:
        seed: The same seed gives the same files.
        count: For each format; below 100, some traps are left out, other ones for another seed.
        samples: Good files of each format, by its ending.
    """
    for ending, traps in TRAPS.items():
        chance = random.Random(f"{seed}:{ending}")
        names = sorted(traps)
        chosen = names if len(names) <= count * 4 // 5 else sorted(chance.sample(names, count * 4 // 5))
        for name in chosen:
            yield f"{ending}/{name}.{ending}", traps[name]
        for number in range(count - len(chosen)):
            change = sorted(CHANGES)[number % len(CHANGES)]
            sample, start = chance.choice(samples[ending]), chance.randrange(2**32)
            named = _WRONG_ENDINGS[ending] if change == "misnamed" else ending
            yield f"{ending}/{change}{number:02d}.{named}", _change_later(change, sample, start)


def _change_later(change: str, sample: bytes, start: int) -> Callable[[], bytes]:
    return lambda: CHANGES[change](bytearray(sample), random.Random(start))


def _truncate(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(1, len(data))])


def _flip_bits(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 10, 100))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _scramble(data: bytearray, chance: random.Random) -> bytes:
    """Copy stretches over others, so that whole structures stand in wrong places."""
    for _ in range(20):
        length = chance.randrange(1, max(2, len(data) // 10))
        source, target = chance.randrange(len(data)), chance.randrange(len(data))
        data[target : target + length] = data[source : source + length]
    return bytes(data)


def _blank(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    length = chance.randrange(1, max(2, len(data) // 4))
    return bytes(data[:start]) + bytes(length) + bytes(data[start + length :])


def _enlarge_numbers(data: bytearray, chance: random.Random) -> bytes:
    """Replace digits by nines: lengths, offsets, counts and sizes then lie."""
    places = [index for index, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    for index in chance.sample(places, min(len(places), 200)):
        data[index] = 0x39
    return bytes(data)


def _keep(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data)


CHANGES: Mapping[str, Callable[[bytearray, random.Random], bytes]] = {
    "truncated": _truncate,
    "flipped": _flip_bits,
    "scrambled": _scramble,
    "blanked": _blank,
    "enlarged": _enlarge_numbers,
    "misnamed": _keep,
}
