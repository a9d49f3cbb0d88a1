"""Spans: vectors of a chunk's short stretches, pooled from the same pass that made the vector of the whole.

The whole's vector blurs a chunk that speaks of several things; the best of its spans says how near its nearest sentence
or so is. Pooling the token vectors that the encoder has computed anyway («late chunking») costs no second pass, and
every span has been read in its context. Spans never bring candidates, they only weigh those that are there
(docs/decisions/0055). Does not know texts, files or the database.

Source: Günther et al., «Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models», 2024,
https://arxiv.org/abs/2409.04701
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.spill import allocate, release
from retrieval.vectors import no_spans

LARGEST = 127
SMALLEST = 1e-30
"""Below this a number is nothing, and dividing by it would overflow."""
EXACT_DIMENSIONS = 1024
"""Products of numbers up to 127 that float32 adds up without rounding, in any order: 1,024 × 127² < 2^24."""
COPIED_AT_ONCE = 200_000
"""Spans after which what was copied is let go to disk."""

Mask = NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class SpanRun:
    """Spans of a run of chunks; positions count from 0 within the run.

    Attributes:
        vectors: (spans, dimension) int8.
        lengths: (spans,) float32: Euclidean length of each.
        firsts: (chunks + 1,) int64: each chunk's first span, and how many there are.
    """

    vectors: NDArray[np.int8]
    lengths: NDArray[np.float32]
    firsts: NDArray[np.int64]


def quantise(rows: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return (rows, dimension) int8 of the same directions, the largest number of each row 127; zeros stay zeros."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=SMALLEST)
    return np.asarray(np.rint(rows * (LARGEST / largest)), dtype=np.int8)


def make_span_run(chunks: Sequence[NDArray[np.int8]], dimension: int) -> SpanRun:
    """Make a run of the spans of each chunk."""
    firsts = np.cumsum([0, *map(len, chunks)], dtype=np.int64)
    vectors = allocate((int(firsts[-1]), dimension), np.int8)
    np.concatenate([no_spans(dimension), *chunks], out=vectors)
    lengths = _measure(vectors)
    release(vectors)
    return SpanRun(vectors, lengths, firsts)


def _measure(vectors: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return (spans,) float32: the length of each, never 0."""
    lengths = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), 65_536):  # a block at a time: int8 takes a quarter of what float32 does
        block = vectors[start : start + 65_536].astype(np.float32)
        lengths[start : start + len(block)] = np.maximum(1, np.linalg.norm(block, axis=1))
    return lengths


def join_spans(runs: Sequence[SpanRun], kept: Sequence[Mask]) -> SpanRun:
    """Put runs one after the other, leaving out some chunks.

    Args:
        runs: The runs.
        kept: (chunks,) of each run: which chunks stay; None: all.
    """
    counts = [np.diff(run.firsts) for run in runs]
    stay = [count if mask is None else count[mask] for count, mask in zip(counts, kept, strict=True)]
    firsts = np.cumsum(np.concatenate([[0], *stay]), dtype=np.int64)
    vectors = allocate((int(firsts[-1]), runs[0].vectors.shape[1]), np.int8)
    lengths = np.empty(len(vectors), dtype=np.float32)
    end = 0
    for run, count, mask in zip(runs, counts, kept, strict=True):
        rows = np.arange(len(run.lengths)) if mask is None else np.flatnonzero(np.repeat(mask, count))
        for block in np.array_split(rows, len(rows) // COPIED_AT_ONCE + 1):
            place = slice(end, end + len(block))
            np.take(run.vectors, block, axis=0, out=vectors[place], mode="clip")  # "raise" would buffer it
            lengths[place] = run.lengths[block]
            end = place.stop
            release(vectors)
        release(run.vectors)
    return SpanRun(vectors, lengths, firsts)


def score_spans(
    runs: Sequence[SpanRun], query: NDArray[np.float32], positions: NDArray[np.int64], missing: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the cosine of a query and the best span of each of some chunks.

    The same to the bit however the chunks are divided into runs: the query is rounded to int8 too, and sums of such
    products are exact.

    Args:
        runs: Runs one after the other.
        query: (dimension,) float32 of unit length.
        positions: (chunks,) in the index; they count through all runs.
        missing: (chunks,) the score of a chunk that has no spans.

    Returns:
        (chunks,) float32, -1 to 1.
    """
    scores = missing.copy()
    (rounded,) = quantise(query[None, :])
    length = np.float32(max(1.0, float(np.linalg.norm(rounded.astype(np.float32)))))
    offset = 0
    for run in runs:
        size = len(run.firsts) - 1
        places = np.flatnonzero((positions >= offset) & (positions < offset + size))
        own = positions[places] - offset
        counts = run.firsts[own + 1] - run.firsts[own]
        places, own, counts = places[counts > 0], own[counts > 0], counts[counts > 0]
        offset += size
        if not len(own):
            continue
        starts = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) + np.repeat(run.firsts[own] - starts, counts)
        cosines = _multiply(run.vectors[rows], rounded) / (run.lengths[rows] * length)
        scores[places] = np.maximum.reduceat(cosines, starts)
    return scores


def _multiply(rows: NDArray[np.int8], query: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return (rows,) float32 dot products, each block of dimensions added up exactly."""
    products = np.zeros(len(rows), dtype=np.float32)
    for start in range(0, len(query), EXACT_DIMENSIONS):
        part = slice(start, start + EXACT_DIMENSIONS)
        block = rows[:, part].astype(np.float32)
        products += np.einsum("ij,j->i", block, query[part].astype(np.float32))  # no threads to wake, as BLAS would
    return products
