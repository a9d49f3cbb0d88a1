"""Rows that say the same: exactly, nearly, or the same question with another answer; in one file or across two.

Nearly the same is measured by MinHash (Broder 1997) over the words and pairs of neighbouring words of a row, in numpy,
without a seed from outside: the same file gives the same pairs. System messages are left out, because rows may share a
long one and still differ. Knows rows in core's normal form, not files and not tokens.
"""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

NEAR = 0.75
"""Similarity from which two rows count as nearly the same; one other word in eleven is 0.75."""
BANDS, BAND_VALUES = 25, 5
"""A row is described by 25 bands of 5 values; two rows of similarity s share a band with chance 1 - (1 - s^5)^25."""
NEIGHBOURS = 4
"""Rows that one row is compared with in one band; more only add pairs that other bands find too."""
COMMON_SHARE, COMMON_ROWS = 0.5, 50
"""Words of at least this share and number of the first rows belong to a template and say nothing about a row."""
CHUNK_BYTES = 2**21
MAX_COMPARED_ROWS = 2_000_000
"""A row takes 250 bytes while it is compared; later rows of a larger file are compared exactly only."""

_EMPTY = np.uint32(0xFFFFFFFF)
_TABLE_BITS = 22
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_MESSAGE, _ANSWER = "\x1e", "\x1f"
_REJECTED = {"role": "rejected", "content": ""}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that say the same.

    Attributes:
        line: Of the later row, or of the row held out.
        like: Line of the earlier row, or of the training row.
        similarity: 1 for the same words; else the estimated share of words and word pairs that both have.
    """

    line: int
    like: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Prints:
    """What is kept of each row of a file.

    Attributes:
        lines: Line numbers, int64, one a row.
        rows: Digest of the whole row, uint64.
        questions: Digest of what comes before the last answer, uint64.
        bands: Bands of the rows that are compared nearly, (rows, BANDS), uint32.
        values: Low bits of the values behind them, (rows, BANDS x BAND_VALUES), uint8.
        has_words: Whether a row has words of its own, bool.
    """

    lines: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint64]
    questions: npt.NDArray[np.uint64]
    bands: npt.NDArray[np.uint32]
    values: npt.NDArray[np.uint8]
    has_words: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Printer:
    """Takes the rows of a file one by one and keeps a print of each.

    Attributes:
        common: Which words belong to the file's template, by the upper bits of their hash; None until they are known.
            Rows that are held out are to be read with those of the training rows.
    """

    common: npt.NDArray[np.bool_] | None = None
    _lines: list[int] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _questions: list[int] = field(default_factory=list)
    _texts: list[bytes] = field(default_factory=list)
    _waiting_bytes: int = 0
    _compared: int = 0
    _parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = field(
        default_factory=list
    )

    def add(self, line: int, row: dict[str, Any]) -> None:
        """Take one row in normal form."""
        question, answers = _split_row(row)
        digest = blake2b("".join(map(_spell_message, question)).encode("utf-8", "replace"), digest_size=8)
        self._lines.append(line)
        self._questions.append(int.from_bytes(digest.digest(), "little"))
        answered = "".join(map(_spell_message, answers)) + (json.dumps(row["tools"]) if row.get("tools") else "")
        digest.update(f"{_ANSWER}{answered}".encode("utf-8", "replace"))
        self._rows.append(int.from_bytes(digest.digest(), "little"))
        if self._compared < MAX_COMPARED_ROWS:
            self._compared += 1
            text = " ".join(_find_texts([*question, *answers])).casefold().encode("utf-8", "replace")
            self._texts.append(text)
            self._waiting_bytes += len(text) + 1
            if self._waiting_bytes >= CHUNK_BYTES:
                self._print_waiting()

    def finish(self) -> Prints:
        """Return the prints of all rows taken."""
        self._print_waiting()
        bands, values, has_words = zip(*self._parts, strict=True) if self._parts else ((), (), ())
        return Prints(
            lines=np.array(self._lines, np.int64),
            rows=np.array(self._rows, np.uint64),
            questions=np.array(self._questions, np.uint64),
            bands=np.concatenate([np.empty((0, BANDS), np.uint32), *bands]),
            values=np.concatenate([np.empty((0, BANDS * BAND_VALUES), np.uint8), *values]),
            has_words=np.concatenate([np.empty(0, np.bool_), *has_words]),
        )

    def _print_waiting(self) -> None:
        if self._texts:
            owners, words = hash_words(self._texts)
            if self.common is None:
                self.common = _find_common(owners, words, len(self._texts))
            own = ~self.common[words >> np.uint64(64 - _TABLE_BITS)]
            self._parts.append(_sign(owners[own], words[own], len(self._texts)))
            self._texts.clear()
            self._waiting_bytes = 0


def _split_row(row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what stands before the answer (or the two answers of a preference), and the answer."""
    if "messages" in row:
        return row["messages"][:-1], row["messages"][-1:]
    return row["prompt"], [*row["chosen"], _REJECTED, *row["rejected"]]


def _spell_message(message: dict[str, Any]) -> str:
    """Return a message as one text; the order of its keys does not matter."""
    if len(message) == 2:
        return f"{_MESSAGE}{message['role']}{_MESSAGE}{message['content']}"
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    more = json.dumps(rest, sort_keys=True) if rest else ""
    return f"{_MESSAGE}{message['role']}{_MESSAGE}{message.get('content') or ''}{more}"


def _find_texts(messages: list[dict[str, Any]]) -> list[str]:
    """Return what messages say, the system's left out."""
    texts = [message["content"] for message in messages if message["role"] != "system" and message.get("content")]
    calls = [message["tool_calls"] for message in messages if message.get("tool_calls")]
    return [*texts, json.dumps(calls, ensure_ascii=False)] if calls else texts


def hash_words(texts: list[bytes]) -> tuple[npt.NDArray[np.intp], Words]:
    """Find the words of texts and hash each, and each pair of neighbours, without a Python loop over words.

    A word is a run of letters and digits; each character above U+0800 (Chinese, Japanese, Thai, …) is one by itself,
    and punctuation is none.

    Args:
        texts: UTF-8, one a row.

    Returns:
        The row that each hash belongs to, and the hashes: (words and pairs), (words and pairs).
    """
    letters = np.frombuffer(b"\n".join(texts) + b"\n", np.uint8)
    lengths = np.fromiter(map(len, texts), np.intp, len(texts)) + 1
    kinds = _KINDS[letters]
    if letters.max(initial=0) >= 0x80:  # what follows a first byte is of its kind and starts no word
        is_first = (letters & 0xC0) != 0x80
        kinds = kinds[np.maximum.accumulate(np.where(is_first, np.arange(len(letters)), 0))]
    else:
        is_first = np.True_
    is_letter = kinds > 0
    before = np.concatenate(([False], is_letter[:-1]))
    follows_alone = np.concatenate(([False], kinds[:-1] == 2))
    starts = np.flatnonzero((is_letter & ~before) | ((kinds == 2) & is_first) | (follows_alone & (kinds == 1)))
    # A word's hash is the sum of its bytes times powers of an odd number, taken from running sums: no loop.
    powers, inverses = _list_powers(len(letters))
    sums = np.cumsum(np.where(is_letter, letters.astype(np.uint64) + np.uint64(1), np.uint64(0)) * powers)
    ends = np.concatenate((starts[1:], [len(letters)])) if len(starts) else starts
    begins = np.where(starts > 0, sums[starts - 1], np.uint64(0))
    words = _mix((sums[ends - 1] - begins) * inverses[starts])
    owners = np.searchsorted(np.cumsum(lengths), starts, side="right")
    paired = owners[1:] == owners[:-1]
    pairs = _mix(words[:-1] * np.uint64(_MULTIPLIER) + words[1:])[paired]
    return np.concatenate((owners, owners[1:][paired])), np.concatenate((words, pairs))


def _make_kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of a character by its first byte: 0 no letter, 1 letter, 2 a word by itself."""
    kinds = np.zeros(256, np.uint8)
    for code in range(128):
        kinds[code] = chr(code).isalnum()
    kinds[0xC3:0xE0] = 1  # Latin, Greek, Cyrillic, Hebrew, Arabic
    kinds[0xE0:] = 2
    kinds[0xE2] = 0  # punctuation and signs
    return kinds


_KINDS = _make_kinds()


def _list_powers(count: int) -> tuple[Words, Words]:
    """Return the powers of an odd number modulo 2^64 and their inverses."""
    odd = 0x2545F4914F6CDD1D
    powers = np.full(count, odd, np.uint64)
    inverses = np.full(count, pow(odd, -1, 2**64), np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _mix(values: Words) -> Words:
    """Spread every bit of a hash over all others (the end of MurmurHash3)."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))


def _find_common(owners: npt.NDArray[np.intp], words: Words, rows: int) -> npt.NDArray[np.bool_]:
    """Return which words so many rows share that they must come from a template."""
    buckets = (words >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
    seen = np.unique(owners.astype(np.int64) << _TABLE_BITS | buckets) & (2**_TABLE_BITS - 1)
    counts = np.bincount(seen, minlength=2**_TABLE_BITS)
    return counts >= max(COMMON_ROWS, COMMON_SHARE * rows)


def _sign(
    owners: npt.NDArray[np.intp], words: Words, rows: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Compute the bands of rows from their words.

    One hash a word and pass puts it into one of BANDS bins, and a bin keeps its least value: one-permutation MinHash.
    An empty bin takes the value of another one, in an order fixed for all rows (Shrivastava 2017).
    """
    values = np.full((BAND_VALUES, rows * BANDS), _EMPTY, np.uint32)
    for index in range(BAND_VALUES):
        hashes = _mix(words + np.uint64(((index + 1) * _MULTIPLIER) & _MASK))
        bins = ((hashes >> np.uint64(32)) * np.uint64(BANDS) >> np.uint64(32)).astype(np.intp)
        np.minimum.at(values[index], owners * BANDS + bins, hashes.astype(np.uint32))
    filled = _fill_empty(values.reshape(BAND_VALUES, rows, BANDS))
    bands = np.zeros((rows, BANDS), np.uint64)
    for part in filled:
        bands = _mix(bands * np.uint64(_MULTIPLIER) + part.astype(np.uint64) + np.uint64(1))
    has_words = np.bincount(owners, minlength=rows) > 0
    low = filled.transpose(1, 2, 0).reshape(rows, BANDS * BAND_VALUES).astype(np.uint8)
    return bands.astype(np.uint32), low, has_words


def _fill_empty(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Give each empty bin the value of the first bin in its own fixed order that has one.

    Args:
        values: (BAND_VALUES, rows, BANDS).
    """
    filled = values.copy()
    passes, rows, bins = np.nonzero(values == _EMPTY)
    for order in _ORDERS:
        if not len(rows):
            break
        found = values[passes, rows, order[bins]]
        filled[passes, rows, bins] = found
        still = found == _EMPTY
        passes, rows, bins = passes[still], rows[still], bins[still]
    return filled


def _make_orders() -> npt.NDArray[np.intp]:
    """Return for each attempt which bin each bin asks: (BANDS, BANDS), every column an order of all bins."""
    ranks = _mix(np.arange(1, BANDS * BANDS + 1, dtype=np.uint64) * np.uint64(_MULTIPLIER)).reshape(BANDS, BANDS)
    return np.argsort(ranks, axis=0)


_ORDERS = _make_orders()


def find_repeats(prints: Prints) -> list[Pair]:
    """Return the rows that repeat an earlier row exactly, each with the first of its kind, in order of lines."""
    _, first, kinds = np.unique(prints.rows, return_index=True, return_inverse=True)
    earlier = first[kinds]
    later = np.flatnonzero(earlier != np.arange(len(earlier)))
    return [Pair(int(prints.lines[at]), int(prints.lines[earlier[at]]), 1.0) for at in later]


def find_other_answers(prints: Prints) -> list[Pair]:
    """Return the rows that ask what an earlier row asks, but are answered otherwise."""
    _, first, kinds = np.unique(prints.questions, return_index=True, return_inverse=True)
    earlier = first[kinds]
    later = np.flatnonzero(prints.rows[earlier] != prints.rows)
    return [Pair(int(prints.lines[at]), int(prints.lines[earlier[at]]), 1.0) for at in later]


def find_near_repeats(prints: Prints) -> list[Pair]:
    """Return the rows that nearly repeat an earlier row, each with the one most like it; exact ones are left out."""
    count = len(prints.bands)
    found = []
    rows = np.flatnonzero(prints.has_words)
    for band in range(BANDS):
        keys = prints.bands[rows, band]
        order = rows[np.argsort(keys, kind="stable")]
        keys = np.sort(keys, kind="stable")
        for step in range(1, NEIGHBOURS + 1):
            same = keys[step:] == keys[:-step]
            found.append(order[step:][same] * count + order[:-step][same])
    later, earlier = np.divmod(np.unique(np.concatenate(found)), max(1, count))
    repeated = np.ones(count, np.bool_)
    repeated[np.unique(prints.rows[:count], return_index=True)[1]] = False
    kept = ~repeated[later]
    return _choose_pairs(prints, later[kept], prints, earlier[kept])


def find_overlap(train: Prints, valid: Prints) -> tuple[list[Pair], list[Pair]]:
    """Return the held-out rows that are training rows, and those that nearly are, each with the one most like it."""
    order = np.argsort(train.rows, kind="stable")
    at = np.searchsorted(train.rows[order], valid.rows)
    is_same = np.zeros(len(valid.rows), np.bool_)
    inside = at < len(order)
    is_same[inside] = train.rows[order[at[inside]]] == valid.rows[inside]
    same = [Pair(int(valid.lines[row]), int(train.lines[order[at[row]]]), 1.0) for row in np.flatnonzero(is_same)]
    known, asked = np.flatnonzero(train.has_words), np.flatnonzero(valid.has_words & ~is_same[: len(valid.has_words)])
    found = []
    for band in range(BANDS):
        keys = train.bands[known, band]
        rows, keys = known[np.argsort(keys, kind="stable")], np.sort(keys, kind="stable")
        low = np.searchsorted(keys, valid.bands[asked, band], side="left")
        high = np.searchsorted(keys, valid.bands[asked, band], side="right")
        for step in range(NEIGHBOURS):
            hit = low + step < high
            found.append(asked[hit] * len(train.bands) + rows[low[hit] + step])
    later, earlier = np.divmod(np.unique(np.concatenate(found)), max(1, len(train.bands)))
    return same, _choose_pairs(valid, later, train, earlier)


def _choose_pairs(
    later_prints: Prints, later: npt.NDArray[np.intp], earlier_prints: Prints, earlier: npt.NDArray[np.intp]
) -> list[Pair]:
    """Estimate how like the pairs are and keep for each later row the best one, where it reaches NEAR."""
    similarity = np.empty(len(later))
    for start in range(0, len(later), 2**16):
        part = slice(start, start + 2**16)
        agree = (later_prints.values[later[part]] == earlier_prints.values[earlier[part]]).mean(axis=1)
        similarity[part] = (agree - 1 / 256) / (1 - 1 / 256)  # unequal values share their low bits by chance
    order = np.lexsort((earlier, -similarity, later))
    order = order[similarity[order] >= NEAR]
    _, first = np.unique(later[order], return_index=True)
    return [
        Pair(
            int(later_prints.lines[later[at]]), int(earlier_prints.lines[earlier[at]]), round(float(similarity[at]), 3)
        )
        for at in order[first]
    ]
