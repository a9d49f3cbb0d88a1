"""From two scores to one: weighted sum of normalised scores, or reciprocal ranks.

Pure functions on arrays. The weighted sum maps each score onto 0..1 between its theoretical least value (0 for BM25, -1
for the cosine) and the best value found for this query, so that a weight means the same for every query.

Source: Bruch, Gai, Ingber, «An Analysis of Fusion Functions for Hybrid Retrieval», 2023, https://arxiv.org/abs/2210.11934
(convex combination with theoretical minimum); Cormack et al. 2009 for reciprocal ranks, whose constant is 60.
"""

import numpy as np
from numpy.typing import NDArray

from retrieval.config import FusionMethod

LEAST_COSINE = -1.0
LEAST_BM25 = 0.0
RRF_CONSTANT = 60


def fuse_scores(
    dense: NDArray[np.float32], lexical: NDArray[np.float32], method: FusionMethod, dense_weight: float
) -> NDArray[np.float32]:
    """Return one score for each candidate, from 0 (worst) to 1 (best on both sides).

    Args:
        dense: (candidates,) cosines, complete: every candidate has one.
        lexical: (candidates,) BM25 scores, complete; 0 where no word matches.
        method: Weighted sum or reciprocal ranks.
        dense_weight: Share of the dense side, 0 to 1.
    """
    if method is FusionMethod.rrf:
        sides = reciprocal_ranks(dense), np.where(lexical > LEAST_BM25, reciprocal_ranks(lexical), 0)
    else:
        sides = scale(dense, LEAST_COSINE), scale(lexical, LEAST_BM25)
    return (dense_weight * sides[0] + (1 - dense_weight) * sides[1]).astype(np.float32)


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
