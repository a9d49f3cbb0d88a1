"""Vectors of a run as an index on a GPU: flat, in lists (IVF) or as a graph (CAGRA), whichever fits and finds enough.

What the index finds is a choice of rows; the CPU scores them from the run's own vectors, so that a cosine is the same
to the bit wherever it was found (docs/decisions/0054, 0084). Few vectors are scanned whole; of many, a graph or lists
are made and searched with the least effort that finds what exact search finds for queries held out of them. The same
code runs on the CPU, where a test holds it to what brute force finds. Does not know chunks, filters or files.
"""

import functools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.approximate import HELD_OUT, QUERY_NOISE, RECALLED, TARGET_RECALL, TRAINED_PER_LIST

logger = logging.getLogger(__name__)

_faiss: Any = faiss  # its stubs know the signatures of C++, not those that FAISS gives them in Python

FLAT, LISTS, GRAPH = "flat", "lists", "graph"
HALVED_FROM_ROWS = 1_000_000
"""Vectors from which on they are held in float16: half the memory and time."""
APPROXIMATE_FROM_ROWS = 4_000_000
"""Vectors from which on not all are scanned: by then a scan of float16 reads some 3 GB a query. Not measured yet."""
MOST_FOUND = 2048
"""Most vectors that a GPU index finds at once."""
MOST_WALKED = 1024
"""Most that a graph is asked for: beyond, cuVS takes another way through it than the one that was tuned."""
SCRATCH_BYTES = 256 * 2**20
"""FAISS's own working memory on the card; it would take 1.5 GiB, beside vLLM."""
GRAPH_DEGREE = 64
PROBES = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Lists that are looked at, from little effort to much."""
WIDTHS = (64, 128, 256, 512)
"""Candidates that a walk through the graph keeps; at least what is wanted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where indexes are made: a GPU, or the CPU for their twins.

    Attributes:
        resources: FAISS's of a GPU; None: the CPU.
        lock: Held by whoever makes, asks or frees an index there. All share the working memory of the resources, which
            FAISS does not guard: two threads at once would end the process.
    """

    resources: Any = None
    lock: threading.RLock = field(default_factory=threading.RLock, compare=False, repr=False)

    @property
    def has_graph(self) -> bool:
        """Whether this build of FAISS makes graphs there: CAGRA on a GPU, HNSW on the CPU."""
        return self.resources is None or hasattr(faiss, "GpuIndexCagra")

    def move(self, index: Any, *, is_halved: bool) -> Any:
        """Return an index of the CPU as one that lives here."""
        if self.resources is None:
            return index
        options = _faiss.GpuClonerOptions()
        options.useFloat16 = is_halved
        options.usePrecomputed = False
        options.use_cuvs = False  # a build with cuVS would refuse lists of float16, and lay out the others anew
        return _faiss.index_cpu_to_gpu(self.resources, 0, index, options)


CPU = Place()


class CardIndex:
    """An index on a GPU. Thread-safe: FAISS's are not on a GPU, even for searches, so those of one place take turns."""

    def __init__(self, kind: str, index: Any, size: int, place: Place) -> None:
        """Take over an index.

        Args:
            kind: FLAT, LISTS or GRAPH.
            index: Of FAISS.
            size: Vectors in it.
            place: Where it lives.
        """
        self.kind, self.size = kind, size
        self.effort, self.recall = 0, 1.0
        self._index, self._place = index, place

    def __del__(self) -> None:
        """Free the memory while nobody else uses the place."""
        with self._place.lock:
            del self._index

    def find_rows(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return (queries, found) rows, the best first; found is at most `count`, and a row of -1 was not found.

        Args:
            queries: (queries, dimension) float32 of unit length.
            count: How many are wanted; at most MOST_FOUND, of a graph MOST_WALKED.
        """
        wanted = min(count, self.size, MOST_WALKED if self.kind == GRAPH else MOST_FOUND)
        with self._place.lock:
            _, rows = self._index.search(queries, wanted, **self._make_parameters(wanted))
        return np.asarray(rows, dtype=np.int64)

    def _make_parameters(self, wanted: int) -> dict[str, Any]:
        """Return what a search is told beside; lists know their effort from the index."""
        if self.kind == LISTS and self.effort:
            self._index.nprobe = min(self.effort, self._index.nlist)
        if self.kind != GRAPH:
            return {}
        width = max(self.effort, wanted)
        if self._place.resources is None:
            return {"params": _faiss.SearchParametersHNSW(efSearch=width)}
        parameters = _faiss.SearchParametersCagra()
        parameters.itopk_size = -(-width // 32) * 32  # cuVS wants a multiple of 32
        return {"params": parameters}

    def tune(self, queries: NDArray[np.float32], nearest: NDArray[np.int64]) -> float:
        """Find the least effort that finds enough of the nearest, and keep it.

        Args:
            queries: (queries, dimension) float32, held out of the making.
            nearest: (queries, RECALLED) rows that exact search finds.

        Returns:
            The recall: at least TARGET_RECALL, or what the greatest effort reaches.
        """
        if self.kind == FLAT:
            return self.recall
        for effort in PROBES if self.kind == LISTS else WIDTHS:
            self.effort = effort
            found = self.find_rows(queries, nearest.shape[1])
            hits = sum(np.isin(wanted, row).sum() for wanted, row in zip(nearest, found, strict=True))
            self.recall = float(hits / nearest.size)
            if self.recall >= TARGET_RECALL:
                break
        return self.recall


def build_card_index(
    vectors: NDArray[np.float32],
    place: Place,
    centroids: NDArray[np.float32] | None = None,
    kinds: list[str] | None = None,
) -> CardIndex:
    """Make the first index that fits and finds enough.

    Args:
        vectors: (vectors, dimension) float32, unit rows.
        place: Where.
        centroids: (lists, dimension) float32: of lists that were made before (approximate.py); None: made anew.
        kinds: In the order to try; None: by the number of vectors.

    Raises:
        RuntimeError: None of them could be made; FAISS's own words on the last.
    """
    tried = kinds or list(list_kinds(len(vectors), place))
    queries, nearest = (None, None) if tried == [FLAT] else draw_queries(vectors)
    problem: RuntimeError | None = None
    for kind in tried:
        began = time.monotonic()
        try:
            with place.lock:
                made = _MAKERS[kind](vectors, place, centroids)
            index = CardIndex(kind, made, len(vectors), place)
            recall = 1.0 if queries is None or nearest is None else index.tune(queries, nearest)
        except RuntimeError as error:  # no memory, or a build without this kind
            problem = error
            logger.info("%s of %d vectors on the GPU: %s", kind, len(vectors), str(error).partition("\n")[0])
            continue
        took = time.monotonic() - began
        logger.info(
            "%s of %d vectors: recall %.4f at effort %d, %.1f s", kind, len(vectors), recall, index.effort, took
        )
        if recall >= TARGET_RECALL:
            return index
        problem = RuntimeError(f"{kind} finds {recall:.4f} of the nearest, wanted {TARGET_RECALL}")
    raise problem or RuntimeError("no kind of index to try")


def list_kinds(rows: int, place: Place) -> Iterator[str]:
    """Yield the kinds to try: a scan of all, or what looks at some first and the scan where that finds too little."""
    if rows >= APPROXIMATE_FROM_ROWS:
        if place.has_graph:
            yield GRAPH
        yield LISTS
    yield FLAT


def draw_queries(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return queries as far from their neighbours as questions are, and the rows of their nearest by exact search."""
    chance = np.random.default_rng(0)
    picked = np.sort(chance.choice(len(vectors), min(HELD_OUT, len(vectors)), replace=False))
    noise = chance.standard_normal((len(picked), vectors.shape[1]), dtype=np.float32)
    queries = vectors[picked] + noise * np.float32(QUERY_NOISE / np.sqrt(vectors.shape[1]))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    count = min(RECALLED, len(vectors))
    _, nearest = _faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return queries, np.asarray(nearest, dtype=np.int64)


def _make_flat(vectors: NDArray[np.float32], place: Place, _: NDArray[np.float32] | None) -> Any:
    index = place.move(_faiss.IndexFlatIP(vectors.shape[1]), is_halved=len(vectors) >= HALVED_FROM_ROWS)
    index.add(vectors)
    return index


def _make_lists(vectors: NDArray[np.float32], place: Place, centroids: NDArray[np.float32] | None) -> Any:
    """Make lists of vectors in float16, around given centroids or new ones."""
    dimension = vectors.shape[1]
    count = len(centroids) if centroids is not None else 2 ** max(1, round(np.log2(2 * np.sqrt(len(vectors)))))
    quantizer = _faiss.IndexFlatIP(dimension)
    if centroids is not None:
        quantizer.add(np.ascontiguousarray(centroids))
    empty = _faiss.IndexIVFScalarQuantizer(
        quantizer, dimension, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    empty.by_residual = False  # whole vectors: what is scored is the inner product itself
    empty.cp.min_points_per_centroid = 1
    if centroids is not None:
        empty.is_trained = True
    index = place.move(empty, is_halved=False)
    if not index.is_trained:
        chance = np.random.default_rng(0)
        rows = chance.choice(len(vectors), min(len(vectors), TRAINED_PER_LIST * count), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    index.add(vectors)
    return index


def _make_graph(vectors: NDArray[np.float32], place: Place, _: NDArray[np.float32] | None) -> Any:
    """Make a graph of neighbours: CAGRA on a GPU, HNSW on the CPU."""
    if place.resources is None:
        index = _faiss.IndexHNSWFlat(vectors.shape[1], GRAPH_DEGREE // 2, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 2 * GRAPH_DEGREE
        index.add(vectors)
        return index
    options = _faiss.GpuIndexCagraConfig()
    options.graph_degree, options.intermediate_graph_degree = GRAPH_DEGREE, 2 * GRAPH_DEGREE
    index = _faiss.GpuIndexCagra(place.resources, vectors.shape[1], faiss.METRIC_INNER_PRODUCT, options)
    index.train(vectors)
    return index


_MAKERS = {FLAT: _make_flat, LISTS: _make_lists, GRAPH: _make_graph}


@functools.cache
def open_card() -> Place | None:
    """Return the GPU that FAISS searches on, or None; probed once, with one warning where it is there and wrong."""
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return None
    try:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCRATCH_BYTES)
        place = Place(resources)
        vectors = np.eye(8, dtype=np.float32)
        rows = CardIndex(FLAT, _make_flat(vectors, place, None), 8, place).find_rows(vectors, 1)
        if (rows[:, 0] == np.arange(8)).all():
            return place
        reason = "it found the wrong vectors"
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    logger.warning("FAISS has a GPU that does not work (%s); the CPU searches instead", reason)
    return None
