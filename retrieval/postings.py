"""Inverted lists: for each word the chunks that hold it and how often. Immutable; two can be joined.

Counts and lengths are stored, not scores, so that chunks may come and go without touching what is there: BM25's
statistics are taken when a query is scored. Does not know how words are made or weighed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_COUNT = 65_535
"""Most occurrences of a word in one chunk that are told apart."""

BLOCK = 2**22
"""Entries that are worked on at once where lists are joined or thinned."""


@dataclass(frozen=True, slots=True)
class Postings:
    """Words of a run of chunks; positions count from 0 within the run.

    Attributes:
        text: (bytes,) uint8: all words in UTF-8, sorted, without separators.
        ends: (words,) int64: where each word ends in `text`.
        starts: (words + 1,) int64: where each word's entries begin in `chunks` and `counts`.
        chunks: (entries,) int32: positions, rising within a word.
        counts: (entries,) uint16: how often the word stands in that chunk.
        lengths: (chunks,) int32: words of each chunk.
    """

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    chunks: NDArray[np.int32]
    counts: NDArray[np.uint16]
    lengths: NDArray[np.int32]


ARRAYS = tuple(field.name for field in fields(Postings))


def build_postings(texts: Iterable[Sequence[str]]) -> Postings:
    """Build the lists of a run of chunks.

    Args:
        texts: The words of each chunk, in order.
    """
    vocabulary: dict[str, int] = {}
    entries: list[int] = []
    lengths: list[int] = []
    for words in texts:
        entries.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
        lengths.append(len(words))
    ordered = sorted(vocabulary)  # by code point, which is also the order of the UTF-8 bytes
    ranks = np.empty(len(ordered), dtype=np.int64)
    ranks[[vocabulary[word] for word in ordered]] = np.arange(len(ordered))
    places = np.repeat(np.arange(len(lengths)), lengths)
    pairs = ranks[np.array(entries, dtype=np.int64)] * max(1, len(lengths)) + places
    pairs, counts = np.unique(pairs, return_counts=True)
    words_of, chunks = np.divmod(pairs, max(1, len(lengths)))
    starts = np.searchsorted(words_of, np.arange(len(ordered) + 1))
    return Postings(
        *_pack_words(ordered),
        starts.astype(np.int64),
        chunks.astype(np.int32),
        counts.clip(max=MAX_COUNT).astype(np.uint16),
        np.array(lengths, dtype=np.int32),
    )


def _pack_words(ordered: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    encoded = [word.encode("utf-8", "surrogatepass") for word in ordered]
    ends = np.cumsum([len(word) for word in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def read_words(postings: Postings) -> list[str]:
    """Return all words, in order."""
    text = postings.text.tobytes()
    bounds = [0, *postings.ends.tolist()]
    return [text[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(bounds)]


def find_entries(postings: Postings, word: str) -> slice:
    """Return where a word's entries lie; an empty slice where it is not there."""
    wanted = word.encode("utf-8", "surrogatepass")

    def read_word(number: int) -> bytes:
        start = postings.ends[number - 1] if number else 0
        return postings.text[start : postings.ends[number]].tobytes()

    number = bisect_left(range(len(postings.ends)), wanted, key=read_word)
    if number == len(postings.ends) or read_word(number) != wanted:
        return slice(0, 0)
    return slice(int(postings.starts[number]), int(postings.starts[number + 1]))


def join_postings(parts: Sequence[Postings], kept: Sequence[NDArray[np.bool_] | None]) -> Postings:
    """Put runs of chunks one after the other, leaving out some chunks; words that nothing holds any more go too.

    Args:
        parts: The runs.
        kept: (chunks,) of each run: which chunks stay; None: all.
    """
    thinned = [_thin(part, mask) for part, mask in zip(parts, kept, strict=True)]
    words = [read_words(part) for part in parts]
    sizes = [np.diff(starts) for starts, _, _ in thinned]
    ordered = sorted(
        {
            word
            for names, size in zip(words, sizes, strict=True)
            for word, entries in zip(names, size, strict=True)
            if entries
        }
    )
    numbers = {word: number for number, word in enumerate(ordered)}
    targets = [np.array([numbers.get(word, len(ordered)) for word in names], dtype=np.int64) for names in words]
    totals = np.zeros(len(ordered) + 1, dtype=np.int64)  # the last one: words that have gone, without entries
    for target, size in zip(targets, sizes, strict=True):
        np.add.at(totals, target, size)
    starts = np.cumsum([0, *totals[:-1]], dtype=np.int64)
    lengths = [part.lengths if mask is None else part.lengths[mask] for part, mask in zip(parts, kept, strict=True)]
    offsets = np.cumsum([0, *map(len, lengths)])
    chunks = np.empty(int(starts[-1]), dtype=np.int32)
    counts = np.empty(int(starts[-1]), dtype=np.uint16)
    cursor = starts.copy()
    for target, offset, (begins, places, amounts) in zip(targets, offsets[:-1], thinned, strict=True):
        for block in _block_words(begins):
            here = slice(int(begins[block.start]), int(begins[block.stop]))
            size = np.diff(begins[block.start : block.stop + 1])
            where = np.arange(here.start, here.stop) + np.repeat(cursor[target[block]] - begins[block], size)
            chunks[where] = places[here] + np.int32(offset)
            counts[where] = amounts[here]
        np.add.at(cursor, target, np.diff(begins))
    return Postings(*_pack_words(ordered), starts, chunks, counts, np.concatenate(lengths).astype(np.int32))


def _block_words(starts: NDArray[np.int64]) -> Iterator[slice]:
    """Yield stretches of words that have about `BLOCK` entries together, so that what is made of them stays small."""
    bounds = np.searchsorted(starts, np.arange(0, int(starts[-1]) + BLOCK, BLOCK))
    for first, last in pairwise(np.unique(np.append(bounds.clip(max=len(starts) - 1), len(starts) - 1)).tolist()):
        yield slice(first, last)


def _thin(
    part: Postings, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint16]]:
    """Return starts, chunks and counts of a run without the chunks that go, renumbered without gaps."""
    if mask is None:
        return part.starts, part.chunks, part.counts
    renumbered = (np.cumsum(mask) - 1).astype(np.int32)
    sizes = np.zeros(len(part.starts) - 1, dtype=np.int64)
    chunks, counts = [part.chunks[:0]], [part.counts[:0]]
    for block in _block_words(part.starts):
        begins = part.starts[block.start : block.stop + 1]
        here = slice(int(begins[0]), int(begins[-1]))
        stays = mask[part.chunks[here]]
        sizes[block] = np.diff(np.concatenate([[0], np.cumsum(stays)])[begins - begins[0]])
        chunks.append(renumbered[part.chunks[here][stays]])
        counts.append(part.counts[here][stays])
    return np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(chunks), np.concatenate(counts)
