"""Dense search: FAISS's inner products over runs of vectors, on the CPU or on a GPU.

A chunk may have several vectors (windows); its score is that of the best. The vectors of a run never change and may be
mapped from a file; on the CPU they are scanned where they lie, by all cores where there are many, and a score is the
same to the bit however the chunks are divided into runs (docs/decisions/0042). Of a long run the nearest lists are
scanned, unless everything is wanted (`approximate`). A GPU is asked for rows (`card_index`), which the CPU scores and
filters; where none works the CPU searches (docs/decisions/0012). Does not know texts or the database.
"""

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.approximate import VectorLists, pick_rows, thin_lists
from retrieval.card_index import FLAT, MOST_FOUND, CardIndex, build_card_index, open_card
from retrieval.config import IndexDevice
from retrieval.spill import allocate, release

logger = logging.getLogger(__name__)

_faiss: Any = faiss  # its stubs know the signatures of C++, not those that FAISS gives them in Python

Found = tuple[NDArray[np.int64], NDArray[np.float32]]

SHARED_FROM_ROWS = 50_000
"""Vectors from which on a scan is shared between the cores: below, waking a thread costs more than it saves."""
LEAST_SHARE = 0.5
"""Least share of allowed rows with which lists and graphs on a GPU are asked: their effort was tuned on all rows."""
SMALLEST = 1e-30
"""Vectors shorter than this have no direction."""
SPARE = 2
"""How many times what is wanted a GPU is asked for: it looks in half precision, and a filter may hide some."""


@dataclass(frozen=True, slots=True)
class VectorRun:
    """Vectors of a run of chunks; positions count from 0 within the run.

    Attributes:
        vectors: (vectors, dimension) float32, unit rows.
        owners: (vectors,) int64: position of the chunk that each vector belongs to, rising without gaps.
        firsts: (chunks + 1,) int64: each chunk's first vector, and how many vectors there are.
        on_gpu: An index of the vectors on a GPU, or None.
        lists: Lists of the vectors, or None: all of them are scanned.
    """

    vectors: NDArray[np.float32]
    owners: NDArray[np.int64]
    firsts: NDArray[np.int64]
    on_gpu: CardIndex | None
    lists: VectorLists | None = None


@dataclass(frozen=True, slots=True)
class DenseIndex:
    """Runs one after the other; a position in the index counts through all of them.

    Attributes:
        runs: Their vectors.
        offsets: (runs + 1,) int64: position of each run's first chunk, and how many positions there are.
    """

    runs: tuple[VectorRun, ...]
    offsets: NDArray[np.int64]

    @property
    def size(self) -> int:
        """How many chunks have vectors."""
        return int(self.offsets[-1])


def make_run(
    vectors: NDArray[np.float32], owners: NDArray[np.int64], device: IndexDevice, lists: VectorLists | None = None
) -> VectorRun:
    """Make a run.

    Args:
        vectors: (vectors, dimension) float32, unit rows.
        owners: (vectors,) positions of chunks, rising from 0 without gaps.
        device: Where it is searched.
        lists: Lists of the vectors.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    firsts = np.append(np.flatnonzero(np.diff(owners, prepend=-1)), len(owners)).astype(np.int64)
    return VectorRun(rows, np.asarray(owners, dtype=np.int64), firsts, place_on_gpu(rows, device, lists), lists)


def join_vectors(runs: list[VectorRun], kept: Sequence[NDArray[np.bool_] | None], device: IndexDevice) -> VectorRun:
    """Put runs one after the other, leaving out some chunks.

    Args:
        runs: The runs. The list is emptied on the way: those that nobody else holds are freed as soon as they are
            copied, so that vectors lie in memory once and not twice.
        kept: (chunks,) of each run: which chunks stay; None: all.
        device: Where the new run is searched.
    """
    windows = np.concatenate(
        [
            np.diff(run.firsts) if mask is None else np.diff(run.firsts)[mask]
            for run, mask in zip(runs, kept, strict=True)
        ]
    )
    lists = None
    if len(runs) == 1 and runs[0].lists is not None and kept[0] is not None:
        lists = thin_lists(runs[0].lists, kept[0][runs[0].owners])
    joined = allocate((int(windows.sum()), runs[0].vectors.shape[1]), np.float32)
    end = 0
    for mask in kept:
        run = runs.pop(0)
        rows = np.arange(len(run.owners)) if mask is None else np.flatnonzero(mask[run.owners])
        np.take(run.vectors, rows, axis=0, out=joined[end : end + len(rows)], mode="clip")  # "raise" would buffer it
        end += len(rows)
        release(joined)
    return make_run(joined, np.repeat(np.arange(len(windows)), windows), device, lists)


def make_dense(runs: Sequence[VectorRun]) -> DenseIndex:
    """Make an index of runs, in their order."""
    return DenseIndex(tuple(runs), np.cumsum([0, *(len(run.firsts) - 1 for run in runs)]))


def build_dense(vectors: NDArray[np.float32], owners: NDArray[np.int64], device: IndexDevice) -> DenseIndex:
    """Build an index of one run; the arguments are those of `make_run`."""
    return make_dense([make_run(vectors, owners, device)])


def search_dense(
    index: DenseIndex,
    query: NDArray[np.float32],
    count: int,
    allowed: NDArray[np.bool_] | None = None,
    *,
    exact: bool = False,
) -> Found:
    """Return the chunks whose best vector is nearest.

    Args:
        index: The index.
        query: (dimension,) float32 of unit length.
        count: How many chunks at most.
        allowed: (positions,) bool: which may be found; None: all. A GPU finds more than are wanted, of which
            the others are left out; where too few are left, the CPU searches.
        exact: Whether to scan everything, lists or not.

    Returns:
        Positions and cosines, best first; of equal ones the earlier first.
    """
    rows_total = sum(len(run.owners) for run in index.runs)
    depth = min(rows_total, count + rows_total - index.size)  # enough even if one chunk had all the windows
    depth = min(depth, 4 * count + 64)
    if not depth:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    query = np.ascontiguousarray(query, dtype=np.float32)
    tasks: list[Callable[[], Found]] = []
    for run, offset, end in zip(index.runs, index.offsets[:-1], index.offsets[1:], strict=True):
        mask = None if allowed is None else allowed[offset:end]
        scans = _plan_scans(run, query, depth, mask, exact=exact)
        tasks.extend(functools.partial(_find_chunks, scan, run, int(offset)) for scan in scans)
    is_shared = len(tasks) > 1 and rows_total >= SHARED_FROM_ROWS
    found = list(_scan_threads().map(lambda task: task(), tasks)) if is_shared else [task() for task in tasks]
    positions = np.concatenate([places for places, _ in found])
    scores = np.concatenate([values for _, values in found])
    order = np.lexsort((positions, -scores))
    positions, scores = positions[order], scores[order]
    _, first_seen = np.unique(positions, return_index=True)  # they come best first, so the first is a chunk's best
    kept = np.sort(first_seen)[:count]
    return positions[kept], scores[kept]


def _plan_scans(
    run: VectorRun, query: NDArray[np.float32], depth: int, mask: NDArray[np.bool_] | None, *, exact: bool
) -> list[Callable[[], Found]]:
    """Return what has to be done to find a run's best rows and their scores, in shares that may go side by side."""
    if run.on_gpu is not None and (run.on_gpu.kind == FLAT or not exact):
        rows = _ask_gpu(run.on_gpu, run, query, depth, mask)
        if rows is not None:
            return [functools.partial(_score_best, run, query, depth, rows)]
    if run.lists is not None and run.lists.is_worthwhile and not exact:
        rows = pick_rows(run.lists, query, depth, None if mask is None else mask[run.owners])
        return [
            functools.partial(_score_best, run, query, depth, part) for part in np.array_split(rows, _count_cores())
        ]
    rows_total = len(run.owners)
    shares = 1 if rows_total < SHARED_FROM_ROWS else _count_cores()
    bounds = pairwise(rows_total * share // shares for share in range(shares + 1))
    return [functools.partial(_scan_rows, run, query, depth, first, last, mask) for first, last in bounds]


def _find_chunks(scan: Callable[[], Found], run: VectorRun, offset: int) -> Found:
    """Return the positions of the chunks that a scan's rows belong to, and the scores."""
    rows, scores = scan()
    return run.owners[rows] + offset, scores


def _ask_gpu(
    index: CardIndex, run: VectorRun, query: NDArray[np.float32], depth: int, mask: NDArray[np.bool_] | None
) -> NDArray[np.int64] | None:
    """Return allowed rows that a GPU finds best, at least as many as are wanted; None where it finds too few."""
    rows_total = len(run.owners)
    share = 1.0 if mask is None else np.count_nonzero(mask) / max(1, len(mask))
    asked = rows_total if not share else min(rows_total, math.ceil(SPARE * depth / share))
    if asked > MOST_FOUND or (index.kind != FLAT and share < LEAST_SHARE):
        return None
    rows = index.find_rows(query[None, :], asked)[0]
    rows = rows[rows >= 0]
    if mask is not None:
        rows = rows[mask[run.owners[rows]]]
    return rows if len(rows) >= min(depth, rows_total) or asked == rows_total else None


def _score_best(run: VectorRun, query: NDArray[np.float32], depth: int, rows: NDArray[np.int64]) -> Found:
    """Return the best of some rows and their scores, without order."""
    scores = _score_rows(run, query, rows)
    if len(rows) > depth:
        best = np.argpartition(-scores, depth - 1)[:depth]
        return rows[best], scores[best]
    return rows, scores


def _score_rows(run: VectorRun, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    scores = np.empty(len(rows), dtype=np.float32)
    pointers = [_faiss.swig_ptr(array) for array in (scores, query, run.vectors, rows)]
    set_threads(1 if len(rows) < SHARED_FROM_ROWS else _count_cores())
    _faiss.fvec_inner_products_by_idx(*pointers, run.vectors.shape[1], 1, len(rows))
    return scores


def _scan_rows(
    run: VectorRun, query: NDArray[np.float32], depth: int, first: int, last: int, mask: NDArray[np.bool_] | None
) -> Found:
    """Return the best rows of a range and their scores, without order."""
    block = run.vectors[first:last]
    selector = None
    if mask is not None:
        selector = _faiss.IDSelectorBitmap(np.packbits(mask[run.owners[first:last]], bitorder="little"))
    depth = min(depth, len(block))
    scores = np.empty((1, depth), dtype=np.float32)
    rows = np.empty((1, depth), dtype=np.int64)
    pointers = [_faiss.swig_ptr(array) for array in (query, block, scores, rows)]
    set_threads(1)  # a large scan is shared by our own threads
    _faiss.knn_inner_product(
        pointers[0], pointers[1], block.shape[1], 1, len(block), depth, pointers[2], pointers[3], selector
    )
    found = rows[0] >= 0  # FAISS fills up with -1 where fewer are allowed
    return rows[0][found] + first, scores[0][found]


def set_threads(count: int) -> None:
    """Let FAISS use so many threads for what this thread asks of it: waking others costs more than a small task."""
    _faiss.omp_set_num_threads(count)


def _count_cores() -> int:
    return os.cpu_count() or 1


@functools.cache
def _scan_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan")


def score_chunks(index: DenseIndex, query: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the cosine of a query and each of some chunks, (positions,) float32, best window each."""
    query = np.ascontiguousarray(query, dtype=np.float32)
    scores = np.zeros(len(positions), dtype=np.float32)
    for run, offset, end in zip(index.runs, index.offsets[:-1], index.offsets[1:], strict=True):
        here = np.flatnonzero((positions >= offset) & (positions < end))
        if not len(here):
            continue
        firsts = run.firsts[positions[here] - offset]
        sizes = run.firsts[positions[here] - offset + 1] - firsts
        begins = np.cumsum(sizes) - sizes
        rows = np.repeat(firsts - begins, sizes) + np.arange(int(sizes.sum()))
        scores[here] = np.maximum.reduceat(_score_rows(run, query, rows), begins)
    return scores


def read_vector(index: DenseIndex, position: int) -> NDArray[np.float32]:
    """Return the direction of a chunk, (dimension,) float32 of unit length: the mean of its windows."""
    place = int(np.searchsorted(index.offsets, position, side="right")) - 1
    run, own = index.runs[place], position - index.offsets[place]
    mean = run.vectors[run.firsts[own] : run.firsts[own + 1]].mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), SMALLEST), dtype=np.float32)


def gather_candidates(
    index: DenseIndex,
    query: NDArray[np.float32],
    count: int,
    by_words: NDArray[np.int64],
    allowed: NDArray[np.bool_] | None = None,
    *,
    exact: bool = False,
) -> Found:
    """Return the nearest chunks and those that the words have found, each once and with its cosine.

    Args:
        index: The index.
        query: (dimension,) float32 of unit length.
        count: How many of the nearest at most.
        by_words: Positions that the lexical side has found.
        allowed: (positions,) bool: which may be among the nearest; None: all.
        exact: Whether to scan everything, lists or not.
    """
    nearest, cosines = search_dense(index, query, count, allowed, exact=exact)
    others = np.setdiff1d(by_words, nearest)
    return np.concatenate([nearest, others]), np.concatenate([cosines, score_chunks(index, query, others)])


def place_on_gpu(
    vectors: NDArray[np.float32], device: IndexDevice, lists: VectorLists | None = None
) -> CardIndex | None:
    """Return an index of vectors on the GPU where that is wanted and works, else None: the CPU searches."""
    if device is IndexDevice.cpu or not len(vectors):
        return None
    place = open_card()
    if place is None:
        if device is IndexDevice.gpu:
            logger.warning("search.index_device=gpu: FAISS has no GPU that works here; the CPU searches instead")
        return None
    try:
        return build_card_index(vectors, place, None if lists is None else lists.centroids)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        logger.warning("FAISS could not make an index on the GPU (%s); the CPU searches instead", reason)
        return None
