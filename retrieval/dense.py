"""Dense search: a flat FAISS index by inner product, exact, on the CPU or on a GPU.

A chunk may have several vectors (windows); its score is that of the best. The GPU is probed once a process, and where
it does not work the CPU takes over with one warning (docs/decisions/0012). Does not know texts or the database.
"""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from core.errors import StorageFull
from retrieval.config import IndexDevice

logger = logging.getLogger(__name__)

_faiss: Any = faiss  # its stubs know the signatures of C++, not those that FAISS gives them in Python

INDEX_FILE = "dense.faiss"
OWNERS_FILE = "owners.npy"


@dataclass(frozen=True, slots=True)
class DenseIndex:
    """Vectors of a store's chunks.

    Attributes:
        flat: faiss.IndexFlatIP on the CPU; what is saved, and where single vectors are read from.
        searcher: What is searched: `flat` itself or its copy on a GPU.
        owners: (vectors,) int64: position of the chunk that each vector belongs to, rising.
        firsts: (chunks,) int64: each chunk's first vector.
    """

    flat: Any
    searcher: Any
    owners: NDArray[np.int64]
    firsts: NDArray[np.int64]


def build_dense(vectors: NDArray[np.float32], owners: NDArray[np.int64], device: IndexDevice) -> DenseIndex:
    """Build an index.

    Args:
        vectors: (vectors, dimension) float32, unit rows.
        owners: (vectors,) positions of chunks, rising from 0 without gaps.
        device: Where it is searched.
    """
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(np.ascontiguousarray(vectors))
    return _finish(flat, owners, device)


def _finish(flat: Any, owners: NDArray[np.int64], device: IndexDevice) -> DenseIndex:
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    return DenseIndex(flat, place_index(flat, device), owners, firsts)


def save_dense(index: DenseIndex, folder: Path) -> None:
    """Write an index into a folder.

    Raises:
        StorageFull: FAISS could not write it.
    """
    try:
        faiss.write_index(index.flat, str(folder / INDEX_FILE))
    except RuntimeError as error:
        raise StorageFull(f"{folder}: FAISS could not write ({_first_line(error)}). Free some disk space.") from error
    np.save(folder / OWNERS_FILE, index.owners, allow_pickle=False)


def load_dense(folder: Path, device: IndexDevice) -> DenseIndex:
    """Read an index from a folder whose checksums were verified: FAISS trusts what it reads."""
    flat = faiss.read_index(str(folder / INDEX_FILE))
    return _finish(flat, np.load(folder / OWNERS_FILE, allow_pickle=False), device)


def read_vectors(index: DenseIndex) -> NDArray[np.float32]:
    """Return (vectors, dimension) float32: a view of the index's own memory, valid as long as the index lives."""
    count = index.flat.ntotal
    view = faiss.rev_swig_ptr(index.flat.get_xb(), count * index.flat.d).reshape(count, index.flat.d)
    return np.asarray(view, dtype=np.float32)


def search_dense(
    index: DenseIndex, query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the chunks whose best vector is nearest.

    Args:
        index: The index.
        query: (dimension,) float32 of unit length.
        count: How many chunks at most.
        allowed: (chunks,) bool: which may be found; None: all. With it the CPU searches: GPU indexes know no selectors.

    Returns:
        Positions and cosines, best first.
    """
    total = index.flat.ntotal
    depth = min(total, count + len(index.owners) - len(index.firsts))  # enough even if one chunk had all the windows
    depth = min(depth, 4 * count + 64, total)
    if not depth:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    if allowed is None:
        scores, rows = index.searcher.search(query[None, :], depth)
    else:
        bits = np.packbits(allowed[index.owners], bitorder="little")
        selector = _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(bits))
        scores, rows = index.flat.search(query[None, :], depth, params=selector)
        found = rows >= 0  # FAISS fills up with -1 where fewer are allowed
        scores, rows = scores[found][None, :], rows[found][None, :]
    positions = index.owners[rows[0]]
    _, first_seen = np.unique(positions, return_index=True)  # rows come best first, so the first is a chunk's best
    kept = np.sort(first_seen)[:count]
    return positions[kept], scores[0][kept]


def score_chunks(index: DenseIndex, query: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the cosine of a query and each of some chunks, (positions,) float32, best window each."""
    if not len(positions):
        return np.zeros(0, dtype=np.float32)
    vectors = read_vectors(index)
    ends = np.append(index.firsts[1:], len(index.owners))
    return np.array(
        [(vectors[index.firsts[place] : ends[place]] @ query).max() for place in positions], dtype=np.float32
    )


def place_index(flat: Any, device: IndexDevice) -> Any:
    """Return what is to be searched: a copy on the GPU where that is wanted and works, else the index itself."""
    if device is IndexDevice.cpu or not find_gpu():
        if device is IndexDevice.gpu:
            logger.warning("search.index_device=gpu: FAISS has no GPU that works here; the CPU searches instead")
        return flat
    try:
        return faiss.index_cpu_to_gpu(_gpu_resources(), 0, flat)
    except RuntimeError as error:
        logger.warning("FAISS could not move an index to the GPU (%s); the CPU searches instead", _first_line(error))
        return flat


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
