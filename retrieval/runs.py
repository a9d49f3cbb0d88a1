"""Runs: stretches of a store's chunks, each with its vectors and its inverted lists; never changed, only joined.

An index is a few runs, the oldest first. A change of the store appends a small one and marks what has gone; runs are
joined before they become many, each chunk a logarithmic number of times. Does not know files or the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexDevice
from retrieval.dense import VectorRun, join_vectors, make_run
from retrieval.embedding import contextualise
from retrieval.lexical import build_run
from retrieval.postings import Postings, join_postings
from retrieval.spans import SpanRun, join_spans, make_span_run
from retrieval.store import ChunkRow

Mask = NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class SavedRun:
    """Where a run has been written, so that the next snapshot links to its files: by part, file and SHA-256."""

    folder: Path
    files: dict[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """A run.

    Attributes:
        numbers: (chunks,) int64: chunk numbers of the database, rising.
        vectors: Their vectors.
        spans: Their spans.
        postings: Their words.
        saved: Where it has been written; None: nowhere yet.
    """

    numbers: NDArray[np.int64]
    vectors: VectorRun
    spans: SpanRun
    postings: Postings
    saved: SavedRun | None = None


def build_chunk_run(rows: Sequence[ChunkRow], device: IndexDevice) -> ChunkRun:
    """Build a run of at least one chunk from the database's rows."""
    numbers = np.array([row.id for row in rows], dtype=np.int64)
    owners = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row.vectors.windows) for row in rows])
    vectors = np.concatenate([row.vectors.windows for row in rows])
    spans = make_span_run([row.vectors.spans for row in rows], vectors.shape[1])
    postings = build_run(contextualise(row.heading, row.text) for row in rows)
    return ChunkRun(numbers, make_run(vectors, owners, device), spans, postings)


def join_runs(
    runs: Sequence[ChunkRun], live: NDArray[np.bool_], device: IndexDevice, *, largest: int | None = None
) -> tuple[list[ChunkRun], NDArray[np.bool_]]:
    """Join runs at the end until each is more than twice as long as the next, and leave out what has gone.

    Args:
        runs: The runs, the oldest first.
        live: (positions,) bool: which of their chunks are still there.
        device: Where new runs are searched.
        largest: Chunks of a join that is worth while now; None: any, and every run is rid of what has gone.

    Returns:
        The runs and which of their chunks are still there.
    """
    ends = np.cumsum([len(run.numbers) for run in runs])
    masks = [live[end - len(run.numbers) : end] for run, end in zip(runs, ends, strict=True)]
    pairs = [(run, mask) for run, mask in zip(runs, masks, strict=True) if mask.any()]
    if largest is None:
        pairs = [pair if pair[1].all() else _join([pair], device) for pair in pairs]
    while len(pairs) > 1:
        before, last = (int(mask.sum()) for _, mask in pairs[-2:])
        if before > 2 * last or (largest is not None and before + last > largest):
            break
        pairs[-2:] = [_join(pairs[-2:], device)]
    kept = np.concatenate([np.zeros(0, dtype=np.bool_), *(mask for _, mask in pairs)])
    return [run for run, _ in pairs], kept


def _join(
    pairs: Sequence[tuple[ChunkRun, NDArray[np.bool_]]], device: IndexDevice
) -> tuple[ChunkRun, NDArray[np.bool_]]:
    runs = [run for run, _ in pairs]
    kept: list[Mask] = [None if mask.all() else mask for _, mask in pairs]
    numbers = np.concatenate([run.numbers[mask] for run, mask in pairs])
    vectors = join_vectors([run.vectors for run in runs], kept, device)
    spans = join_spans([run.spans for run in runs], kept)
    joined = ChunkRun(numbers, vectors, spans, join_postings([run.postings for run in runs], kept))
    return joined, np.ones(len(numbers), dtype=np.bool_)
