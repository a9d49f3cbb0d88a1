"""What one search may do otherwise than it is configured, because its request says so. Does not know how it is done."""

from dataclasses import dataclass, replace

from retrieval.config import SearchConfig


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
