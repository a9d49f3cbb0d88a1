"""Dense search: FAISS's exact inner products over runs of vectors, on the CPU or on a GPU.

A chunk may have several vectors (windows); its score is that of the best. The vectors of a run never change and may be
mapped from a file; on the CPU they are scanned where they lie, by all cores where there are many, and a score is the
same to the bit however the chunks are divided into runs (docs/decisions/0042). The GPU is probed once a process, and
where it does not work the CPU takes over with one warning (docs/decisions/0012). Does not know texts or the database.
"""

import functools
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexDevice

logger = logging.getLogger(__name__)

_faiss: Any = faiss  # its stubs know the signatures of C++, not those that FAISS gives them in Python

Found = tuple[NDArray[np.int64], NDArray[np.float32]]

SHARED_FROM_ROWS = 50_000
"""Vectors from which on a scan is shared between the cores: below, waking a thread costs more than it saves."""


@dataclass(frozen=True, slots=True)
class VectorRun:
    """Vectors of a run of chunks; positions count from 0 within the run.

    Attributes:
        vectors: (vectors, dimension) float32, unit rows.
        owners: (vectors,) int64: position of the chunk that each vector belongs to, rising without gaps.
        firsts: (chunks + 1,) int64: each chunk's first vector, and how many vectors there are.
        on_gpu: A FAISS index of the vectors on a GPU, or None.
    """

    vectors: NDArray[np.float32]
    owners: NDArray[np.int64]
    firsts: NDArray[np.int64]
    on_gpu: Any


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


def make_run(vectors: NDArray[np.float32], owners: NDArray[np.int64], device: IndexDevice) -> VectorRun:
    """Make a run.

    Args:
        vectors: (vectors, dimension) float32, unit rows.
        owners: (vectors,) positions of chunks, rising from 0 without gaps.
        device: Where it is searched.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    firsts = np.append(np.flatnonzero(np.diff(owners, prepend=-1)), len(owners)).astype(np.int64)
    return VectorRun(rows, np.asarray(owners, dtype=np.int64), firsts, place_on_gpu(rows, device))


def join_vectors(runs: Sequence[VectorRun], kept: Sequence[NDArray[np.bool_] | None], device: IndexDevice) -> VectorRun:
    """Put runs one after the other, leaving out some chunks.

    Args:
        runs: The runs.
        kept: (chunks,) of each run: which chunks stay; None: all.
        device: Where the new run is searched.
    """
    sizes = [
        np.diff(run.firsts) if mask is None else np.diff(run.firsts)[mask] for run, mask in zip(runs, kept, strict=True)
    ]
    rows = [
        run.vectors if mask is None else run.vectors[mask[run.owners]] for run, mask in zip(runs, kept, strict=True)
    ]
    windows = np.concatenate(sizes)
    return make_run(np.concatenate(rows), np.repeat(np.arange(len(windows)), windows), device)


def make_dense(runs: Sequence[VectorRun]) -> DenseIndex:
    """Make an index of runs, in their order."""
    return DenseIndex(tuple(runs), np.cumsum([0, *(len(run.firsts) - 1 for run in runs)]))


def build_dense(vectors: NDArray[np.float32], owners: NDArray[np.int64], device: IndexDevice) -> DenseIndex:
    """Build an index of one run; the arguments are those of `make_run`."""
    return make_dense([make_run(vectors, owners, device)])


def search_dense(
    index: DenseIndex, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None
) -> Found:
    """Return the chunks whose best vector is nearest.

    Args:
        index: The index.
        query: (dimension,) float32 of unit length.
        count: How many chunks at most.
        allowed: (positions,) bool: which may be found; None: all. With it the CPU searches, for GPU
            indexes know no selectors.

    Returns:
        Positions and cosines, best first; of equal ones the earlier first.
    """
    rows_total = sum(len(run.owners) for run in index.runs)
    depth = min(rows_total, count + rows_total - index.size)  # enough even if one chunk had all the windows
    depth = min(depth, 4 * count + 64)
    query = np.ascontiguousarray(query, dtype=np.float32)
    tasks = [
        (run, int(offset), first, last)
        for run, offset in zip(index.runs, index.offsets[:-1], strict=True)
        for first, last in _share_rows(run, allowed is None)
    ]
    if not depth or not tasks:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)

    def scan(task: tuple[VectorRun, int, int, int]) -> Found:
        run, offset, first, last = task
        mask = None if allowed is None else allowed[offset : offset + len(run.firsts) - 1]
        rows, scores = _scan_rows(run, query, depth, first, last, mask)
        return run.owners[rows] + offset, scores

    found = [scan(task) for task in tasks] if rows_total < SHARED_FROM_ROWS else list(_scan_threads().map(scan, tasks))
    positions = np.concatenate([places for places, _ in found])
    scores = np.concatenate([values for _, values in found])
    order = np.lexsort((positions, -scores))
    positions, scores = positions[order], scores[order]
    _, first_seen = np.unique(positions, return_index=True)  # they come best first, so the first is a chunk's best
    kept = np.sort(first_seen)[:count]
    return positions[kept], scores[kept]


def _share_rows(run: VectorRun, is_plain: bool) -> list[tuple[int, int]]:
    """Return the ranges of rows that are scanned by themselves."""
    rows = len(run.owners)
    shares = 1 if rows < SHARED_FROM_ROWS or (run.on_gpu is not None and is_plain) else os.cpu_count() or 1
    bounds = [rows * share // shares for share in range(shares + 1)]
    return list(pairwise(bounds))


def _scan_rows(
    run: VectorRun, query: NDArray[np.float32], depth: int, first: int, last: int, mask: NDArray[np.bool_] | None
) -> Found:
    """Return the best rows of a range and their scores, without order."""
    if run.on_gpu is not None and mask is None:
        scores, rows = run.on_gpu.search(query[None, :], min(depth, last))
        return rows[0], scores[0]
    block = run.vectors[first:last]
    selector = None
    if mask is not None:
        selector = _faiss.IDSelectorBitmap(np.packbits(mask[run.owners[first:last]], bitorder="little"))
    depth = min(depth, len(block))
    scores = np.empty((1, depth), dtype=np.float32)
    rows = np.empty((1, depth), dtype=np.int64)
    pointers = [_faiss.swig_ptr(array) for array in (query, block, scores, rows)]
    _faiss.knn_inner_product(
        pointers[0], pointers[1], block.shape[1], 1, len(block), depth, pointers[2], pointers[3], selector
    )
    found = rows[0] >= 0  # FAISS fills up with -1 where fewer are allowed
    return rows[0][found] + first, scores[0][found]


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
        values = np.empty(len(rows), dtype=np.float32)
        pointers = [_faiss.swig_ptr(array) for array in (values, query, run.vectors, rows)]
        _faiss.fvec_inner_products_by_idx(*pointers, run.vectors.shape[1], 1, len(rows))
        scores[here] = np.maximum.reduceat(values, begins)
    return scores


def gather_candidates(
    index: DenseIndex,
    query: NDArray[np.float32],
    count: int,
    by_words: NDArray[np.int64],
    allowed: NDArray[np.bool_] | None = None,
) -> Found:
    """Return the nearest chunks and those that the words have found, each once and with its cosine.

    Args:
        index: The index.
        query: (dimension,) float32 of unit length.
        count: How many of the nearest at most.
        by_words: Positions that the lexical side has found.
        allowed: (positions,) bool: which may be among the nearest; None: all.
    """
    nearest, cosines = search_dense(index, query, count, allowed)
    others = np.setdiff1d(by_words, nearest)
    return np.concatenate([nearest, others]), np.concatenate([cosines, score_chunks(index, query, others)])


def place_on_gpu(vectors: NDArray[np.float32], device: IndexDevice) -> Any:
    """Return a FAISS index of vectors on the GPU where that is wanted and works, else None: the CPU searches."""
    if device is IndexDevice.cpu or not find_gpu():
        if device is IndexDevice.gpu:
            logger.warning("search.index_device=gpu: FAISS has no GPU that works here; the CPU searches instead")
        return None
    try:
        flat = _faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        return _faiss.index_cpu_to_gpu(_gpu_resources(), 0, flat)
    except RuntimeError as error:
        logger.warning("FAISS could not move an index to the GPU (%s); the CPU searches instead", _first_line(error))
        return None


@functools.cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()


@functools.cache
def find_gpu() -> bool:
    """Tell whether FAISS has a GPU that gives right answers: probed once, with one warning where it does not."""
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return False
    try:
        vectors = np.eye(8, dtype=np.float32)
        flat = faiss.IndexFlatIP(8)
        flat.add(vectors)
        _, rows = faiss.index_cpu_to_gpu(_gpu_resources(), 0, flat).search(vectors, 1)
        if (rows[:, 0] == np.arange(8)).all():
            return True
        reason = "it found the wrong vectors"
    except RuntimeError as error:
        reason = _first_line(error)
    logger.warning("FAISS has a GPU that does not work (%s); the CPU searches instead", reason)
    return False


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
