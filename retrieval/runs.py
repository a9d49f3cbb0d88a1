"""Runs: stretches of a store's chunks, each with its vectors and its inverted lists; never changed, only joined.

An index is a few runs, the oldest first. A change of the store appends a small one and marks what has gone; runs are
joined before they become many, each chunk a logarithmic number of times. Does not know files or the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval import approximate
from retrieval.config import IndexDevice
from retrieval.dense import VectorRun, join_vectors, make_run
from retrieval.lexical import build_run
from retrieval.postings import Postings, join_postings
from retrieval.spans import SpanRun, join_spans, make_span_run
from retrieval.stop_words import LANGUAGE
from retrieval.store import ChunkRow
from retrieval.windows import contextualise

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


def build_chunk_run(rows: Sequence[ChunkRow], device: IndexDevice, language: str = LANGUAGE) -> ChunkRun:
    """Build a run of at least one chunk from the database's rows, their words stemmed in the store's language."""
    numbers = np.array([row.id for row in rows], dtype=np.int64)
    owners = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row.vectors.windows) for row in rows])
    vectors = np.concatenate([row.vectors.windows for row in rows])
    spans = make_span_run([row.vectors.spans for row in rows], vectors.shape[1])
    postings = build_run((contextualise(row.heading, row.text) for row in rows), language)
    return ChunkRun(numbers, make_run(vectors, owners, device), spans, postings)


def join_runs(
    runs: list[ChunkRun], live: NDArray[np.bool_], device: IndexDevice, *, largest: int | None = None
) -> tuple[list[ChunkRun], NDArray[np.bool_]]:
    """Join neighbours until each run is more than twice as long as the next, and leave out what has gone.

    Args:
        runs: The runs, the oldest first. The list is emptied, so that those that become one are freed on the way.
        live: (positions,) bool: which of their chunks are still there.
        device: Where new runs are searched.
        largest: Chunks of a join that is worth while now; None: any, and every run is rid of what has gone.

    Returns:
        The runs and which of their chunks are still there.
    """
    ends = np.cumsum([len(run.numbers) for run in runs])
    masks = [live[end - len(run.numbers) : end] for run, end in zip(runs, ends, strict=True)]
    pairs = [(run, mask) for run, mask in zip(runs, masks, strict=True) if mask.any()]
    runs.clear()
    groups = _group_runs([int(mask.sum()) for _, mask in pairs], largest)
    parts = [pairs[group] for group in groups]
    pairs.clear()
    for part in parts:
        is_done = len(part) == 1 and (largest is not None or part[0][1].all())
        pairs.append(part[0] if is_done else _join(part, device))
    kept = np.concatenate([np.zeros(0, dtype=np.bool_), *(mask for _, mask in pairs)])
    return [run for run, _ in pairs], kept


def join_all(runs: list[ChunkRun], device: IndexDevice) -> list[ChunkRun]:
    """Return one run of all, none where there are none; the list is emptied, as by `join_runs`."""
    pairs = [(run, np.ones(len(run.numbers), dtype=np.bool_)) for run in runs]
    runs.clear()
    return [_join(pairs, device)[0]] if len(pairs) > 1 else [run for run, _ in pairs]


def list_run(run: ChunkRun) -> ChunkRun:
    """Return a run whose vectors lie in lists, where it is long enough."""
    vectors = run.vectors
    if vectors.lists is not None or len(vectors.owners) < approximate.LISTED_FROM_ROWS:
        return run
    return replace(run, vectors=replace(vectors, lists=approximate.make_lists(vectors.vectors)))


def wants_lists(runs: Sequence[ChunkRun]) -> bool:
    """Tell whether runs hold so much without lists that compact ones have lists of it."""
    sizes = [len(run.vectors.owners) for run in runs]
    return any(
        sum(sizes[group]) >= approximate.LISTED_FROM_ROWS and any(run.vectors.lists is None for run in runs[group])
        for group in _group_runs(sizes, None)
    )


def _group_runs(sizes: Sequence[int], largest: int | None) -> list[slice]:
    """Return which neighbours become one, so that each is more than twice as long as the next."""
    groups: list[slice] = []
    end = len(sizes)
    while end:
        first = end - 1
        total = sizes[first]
        while first and sizes[first - 1] <= 2 * total and (largest is None or sizes[first - 1] + total <= largest):
            first -= 1
            total += sizes[first]
        groups.append(slice(first, end))
        end = first
    return groups[::-1]


def _join(pairs: list[tuple[ChunkRun, NDArray[np.bool_]]], device: IndexDevice) -> tuple[ChunkRun, NDArray[np.bool_]]:
    """Join runs into one; the list is emptied, so that vectors that nobody else holds are freed as they are copied."""
    kept: list[Mask] = [None if mask.all() else mask for _, mask in pairs]
    numbers = np.concatenate([run.numbers[mask] for run, mask in pairs])
    postings = join_postings([run.postings for run, _ in pairs], kept)
    spans = join_spans([run.spans for run, _ in pairs], kept)
    parts = [run.vectors for run, _ in pairs]
    pairs.clear()
    joined = ChunkRun(numbers, join_vectors(parts, kept, device), spans, postings)
    return joined, np.ones(len(numbers), dtype=np.bool_)
