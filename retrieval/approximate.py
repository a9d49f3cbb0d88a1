"""Approximate search of a long run: its vectors lie in lists, and only the lists nearest to the query are looked at.

What is looked at is scored as an exact search scores it, from the same vectors by the same kernel: a cosine is the same
to the bit, filters hold, and only the choice of what to look at can miss something. How much has to be looked at is
measured when the lists are made, on queries held out of the training, against exact search (docs/decisions/0054). Does
not know chunks, runs or files.
"""

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_faiss: Any = faiss  # its stubs know the signatures of C++, not those that FAISS gives them in Python

LISTED_FROM_ROWS = 100_000
"""Vectors from which on lists are made; chosen by judgement, scripts/bench_index.py has yet to place it."""
TARGET_RECALL = 0.99
"""Share of the ten nearest that is found for held-out queries; real questions want 0.98, so this leaves a margin."""
RECALLED = 10
HELD_OUT = 256
"""Queries that the budget is measured with."""
QUERY_NOISE = 1.0
"""Length of the noise that makes a query of a held-out vector: cosine about 0.7, as of a question and its passage."""
TRAINED_PER_LIST = 64
"""Vectors of each list that k-means sees."""
ROUNDS = 8
"""Of k-means."""
LOOKED_PER_CANDIDATE = 50
"""Least vectors that are looked at for each one that is wanted."""
OUTDATED_BELOW = 0.7
"""Share of the trained vectors; where fewer are left, lists are trained anew."""
BLOCK = 65_536
"""Vectors that are assigned at once."""


@dataclass(frozen=True, slots=True)
class VectorLists:
    """Lists of a run's vectors.

    Attributes:
        centroids: (lists, dimension) float32, unit rows.
        starts: (lists + 1,) int64: where each list begins in `rows`.
        rows: (vectors,) int32: rows of the run, by list, rising within one.
        tuning: (3,) float64: vectors to look at, recall that this had with held-out queries, vectors trained with.
    """

    centroids: NDArray[np.float32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    tuning: NDArray[np.float64]

    @property
    def budget(self) -> int:
        """How many vectors a search looks at, at least."""
        return int(self.tuning[0])

    @property
    def is_worthwhile(self) -> bool:
        """Whether a search of the lists is quicker than one of all vectors, which lie in a row."""
        return 2 * self.budget <= len(self.rows)


ARRAYS = ("centroids", "starts", "rows", "tuning")


def make_lists(vectors: NDArray[np.float32]) -> VectorLists:
    """Make and tune lists; the same ones for the same vectors on the same machine.

    Args:
        vectors: (vectors, dimension) float32, unit rows; may be mapped from a file.
    """
    chance = np.random.default_rng(0)
    count = 2 ** max(1, round(math.log2(2 * math.sqrt(len(vectors)))))
    held_out = np.sort(chance.choice(len(vectors), min(HELD_OUT, len(vectors) // 2), replace=False))
    others = np.setdiff1d(np.arange(len(vectors)), held_out, assume_unique=True)
    sample = np.sort(chance.choice(others, min(len(others), TRAINED_PER_LIST * count), replace=False))
    _faiss.omp_set_num_threads(os.cpu_count() or 1)  # a search in this thread may have asked for one
    kmeans = _faiss.Kmeans(vectors.shape[1], count, niter=ROUNDS, seed=1, spherical=True, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(vectors[sample]))
    centroids = np.ascontiguousarray(kmeans.centroids, dtype=np.float32)
    lists_of = _assign(vectors, centroids)
    starts = np.searchsorted(np.sort(lists_of), np.arange(count + 1)).astype(np.int64)
    rows = np.argsort(lists_of, kind="stable").astype(np.int32)
    noise = chance.standard_normal((len(held_out), vectors.shape[1]), dtype=np.float32)
    queries = vectors[held_out] + noise * np.float32(QUERY_NOISE / math.sqrt(vectors.shape[1]))
    needs = _measure_needs(vectors, queries, centroids, lists_of, starts)
    budget = int(needs[math.ceil(TARGET_RECALL * len(needs)) - 1])
    recall = float(np.count_nonzero(needs <= budget) / len(needs))
    logger.info(
        "%d vectors in %d lists: looking at %d finds %.4f of the %d nearest to held-out queries",
        *(len(vectors), count, budget, recall, RECALLED),
    )
    return VectorLists(centroids, starts, rows, np.array([budget, recall, len(vectors)], dtype=np.float64))


def _assign(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return (vectors,) int32: the list of each vector."""
    lists_of = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK])
        _, nearest = _faiss.knn(block, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
        lists_of[start : start + BLOCK] = nearest[:, 0]
    return lists_of


def _measure_needs(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    centroids: NDArray[np.float32],
    lists_of: NDArray[np.int32],
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return, rising, how many vectors have to be looked at until each of the nearest to each query is among them."""
    _, nearest = _faiss.knn(queries, vectors, min(RECALLED, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    order = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")
    looked = np.cumsum(np.diff(starts)[order], axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(centroids))[None, :], axis=1)
    places = np.take_along_axis(ranks, lists_of[nearest].astype(np.int64), axis=1)
    return np.sort(np.take_along_axis(looked, places, axis=1), axis=None)


def thin_lists(lists: VectorLists, kept: NDArray[np.bool_]) -> VectorLists | None:
    """Return the lists without some vectors, those that stay renumbered without gaps; None where too few stay.

    Args:
        lists: The lists.
        kept: (vectors,) bool: which rows stay.
    """
    if np.count_nonzero(kept) < max(LISTED_FROM_ROWS, OUTDATED_BELOW * lists.tuning[2]):
        return None
    stays = kept[lists.rows]
    starts = np.concatenate([[0], np.cumsum(stays)])[lists.starts]
    renumbered = (np.cumsum(kept) - 1).astype(np.int32)
    return VectorLists(lists.centroids, starts, renumbered[lists.rows[stays]], lists.tuning)


def pick_rows(
    lists: VectorLists, query: NDArray[np.float32], depth: int, allowed: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Return the rows to look at: those of the nearest lists, until enough of them are allowed.

    Args:
        lists: The lists.
        query: (dimension,) float32 of unit length.
        depth: How many vectors are wanted.
        allowed: (vectors,) bool: which may be found; None: all. However few they are, as many are looked at as without
            it, or all of them.
    """
    wanted = max(lists.budget, LOOKED_PER_CANDIDATE * depth)
    order = np.argsort(-(lists.centroids @ query), kind="stable")
    sizes = np.cumsum(np.diff(lists.starts)[order])
    looked = wanted
    while True:
        count = int(np.searchsorted(sizes, looked)) + 1
        rows = np.concatenate([lists.rows[lists.starts[one] : lists.starts[one + 1]] for one in order[:count]])
        if allowed is not None:
            rows = rows[allowed[rows]]
        if len(rows) >= wanted or count >= len(order):
            return rows.astype(np.int64)
        looked *= 2
