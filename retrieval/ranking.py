"""What one search is asked for: that it can be done, and what it does otherwise than configured. Not how it is done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from retrieval.config import MAX_K, SearchConfig


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one search does otherwise than `search` is configured.

    Attributes:
        is_reranked: Whether the configured reranker, where there is one, reads the best.
        min_score: Least relevance of a hit (see `Hit.relevance`); None: `search.min_score`.
        dense_weight: Share of the dense score, 0 to 1; None: as tuned, or `search.dense_weight`.
    """

    is_reranked: bool = True
    min_score: float | None = None
    dense_weight: float | None = None

    def apply(self, search: SearchConfig) -> SearchConfig:
        """Return the settings of this search."""
        return replace(
            search,
            reranker=search.reranker if self.is_reranked else None,
            min_score=search.min_score if self.min_score is None else self.min_score,
            dense_weight=search.dense_weight if self.dense_weight is None else self.dense_weight,
        )


AS_CONFIGURED = Ranking()


def drop_below(order: NDArray[np.int64], values: NDArray[np.float32], least: float) -> tuple[NDArray[np.int64], int]:
    """Return the places whose value reaches the threshold, and how many do not."""
    kept = order[values[order] >= least]
    return kept, len(order) - len(kept)


def check_query(stores: Sequence[str], query: str, k: int | None) -> None:
    """Refuse a search that cannot be done.

    Raises:
        InputError: The query is empty, k is out of range or no store is named.
    """
    if not stores:
        raise InputError("store: wanted at least one store's name, found none.", param="store")
    if not query.strip():
        raise InputError("query: wanted some text, found none.", param="query")
    if k is not None and not 1 <= k <= MAX_K:
        raise InputError(f"k: wanted 1 to {MAX_K}, found {k}.", param="k")
