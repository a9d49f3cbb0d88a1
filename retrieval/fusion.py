"""From two scores to one: weighted sum of normalised scores, or reciprocal ranks; what is like the best hit may rise.

The weighted sum maps each score onto 0..1 between its theoretical least value (0 for BM25, -1
for the cosine) and the best value found for this query, so that a weight means the same for every query.

Source: Bruch, Gai, Ingber, «An Analysis of Fusion Functions for Hybrid Retrieval», 2023, https://arxiv.org/abs/2210.11934
(convex combination with theoretical minimum); Cormack et al. 2009 for reciprocal ranks, whose constant is 60; Diaz,
«Regularizing ad hoc retrieval scores», CIKM 2005, for scores that like hits share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import FusionMethod, SearchConfig
from retrieval.dense import DenseIndex, read_vector, score_chunks

LEAST_COSINE = -1.0
LEAST_BM25 = 0.0
RRF_CONSTANT = 60


@dataclass(frozen=True, slots=True)
class ScoredChunks:
    """Candidates of a query with their scores; parallel arrays.

    Attributes:
        numbers: (candidates,) int64: chunk numbers of the database.
        dense: (candidates,) float32: cosines of whole chunks.
        spans: (candidates,) float32: cosines of their best spans.
        lexical: (candidates,) float32: BM25 scores.
        places: Where their vectors lie: indexes with positions in them, which together are the candidates in order.
            Empty: nothing is known of likeness.
        pairs: (candidates,) float32, 0 to 1: how much of the query's word pairs each holds, as far as it was looked at
            (proximity.py). None: the query has none, or nobody looked.
    """

    numbers: NDArray[np.int64]
    dense: NDArray[np.float32]
    spans: NDArray[np.float32]
    lexical: NDArray[np.float32]
    places: tuple[tuple[DenseIndex, NDArray[np.int64]], ...] = ()
    pairs: NDArray[np.float32] | None = None


def join_chunks(found: Sequence[ScoredChunks]) -> ScoredChunks:
    """Put candidates of several stores one after the other."""
    pairs = [np.zeros(len(part.numbers), np.float32) if part.pairs is None else part.pairs for part in found]
    return ScoredChunks(
        np.concatenate([part.numbers for part in found]),
        np.concatenate([part.dense for part in found]),
        np.concatenate([part.spans for part in found]),
        np.concatenate([part.lexical for part in found]),
        tuple(place for part in found for place in part.places),
        None if all(part.pairs is None for part in found) else np.concatenate(pairs),
    )


def order_chunks(found: ScoredChunks, search: SearchConfig) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places of candidates, best first, and the fused score of each candidate.

    Of equal scores the older chunk comes first, so that ties are stable.
    """
    dense = mix_dense(found.dense, found.spans, search.span_weight)
    pairs = (found.pairs, search.pair_weight)
    fused = fuse_scores(dense, found.lexical, search.fusion, search.dense_weight, *pairs)
    order = np.lexsort((found.numbers, -fused))
    share = search.likeness_weight * search.dense_weight  # likeness is a matter of vectors: words alone know none
    if not share or not found.places or not len(order):
        return order, fused
    near = compare(found, order[0])
    near[order[0]] = 1  # so that the best stays the best
    fused = ((1 - share) * fused + share * near).astype(np.float32)
    return np.lexsort((found.numbers, -fused)), fused


def compare(found: ScoredChunks, place: int) -> NDArray[np.float32]:
    """Return the cosine of each candidate to one of them, (candidates,) float32, 0 to 1; negative ones are 0."""
    (vector,) = (
        read_vector(index, int(positions[place - start]))
        for (index, positions), start in zip(found.places, _count_up(found), strict=True)
        if 0 <= place - start < len(positions)
    )
    near = np.concatenate([score_chunks(index, vector, positions) for index, positions in found.places])
    return np.asarray(near.clip(0, 1), dtype=np.float32)


def _count_up(found: ScoredChunks) -> list[int]:
    """Return how many candidates come before each part."""
    starts: list[int] = np.cumsum([0, *(len(positions) for _, positions in found.places)])[:-1].tolist()
    return starts


def fuse_scores(
    dense: NDArray[np.float32],
    lexical: NDArray[np.float32],
    method: FusionMethod,
    dense_weight: float,
    pairs: NDArray[np.float32] | None = None,
    pair_weight: float = 0.0,
) -> NDArray[np.float32]:
    """Return one score for each candidate, from 0 (worst) to 1 (best on both sides).

    Args:
        dense: (candidates,) cosines (see `mix_dense`), complete: every candidate has one.
        lexical: (candidates,) BM25 scores, complete; 0 where no word matches.
        method: Weighted sum or reciprocal ranks.
        dense_weight: Share of the dense side, 0 to 1.
        pairs: (candidates,) 0 to 1, what word pairs say; None: nothing.
        pair_weight: Their share of the lexical side, 0 to 1.
    """
    if method is FusionMethod.rrf:
        sides = reciprocal_ranks(dense), np.where(lexical > LEAST_BM25, reciprocal_ranks(lexical), 0)
    else:
        sides = scale(dense, LEAST_COSINE), scale(lexical, LEAST_BM25)
    words = sides[1] if pairs is None else (1 - pair_weight) * sides[1] + pair_weight * pairs
    return (dense_weight * sides[0] + (1 - dense_weight) * words).astype(np.float32)


def mix_dense(whole: NDArray[np.float32], spans: NDArray[np.float32], span_weight: float) -> NDArray[np.float32]:
    """Return (candidates,) float32: one dense score from the cosine of the whole chunk and that of its best span."""
    return ((1 - span_weight) * whole + span_weight * spans).astype(np.float32)


def scale(scores: NDArray[np.float32], least: float) -> NDArray[np.float32]:
    """Map scores onto 0..1: `least` becomes 0 and the best one 1; all 0 where nothing is better than `least`."""
    best = float(scores.max(initial=least))
    if best <= least:
        return np.zeros_like(scores)
    scaled: NDArray[np.float32] = ((scores - least) / (best - least)).clip(0, 1).astype(np.float32)
    return scaled


def reciprocal_ranks(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map scores onto (1 + c) / (rank + c), 1 for the best; equal scores share the better rank."""
    ranks = 1 + (scores[None, :] > scores[:, None]).sum(axis=1)
    return np.asarray((1 + RRF_CONSTANT) / (ranks + RRF_CONSTANT), dtype=np.float32)
