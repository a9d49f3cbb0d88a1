"""Search settings that `action=tune` has found for a store and that are kept with it.

Does not know how they were found.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqlalchemy import Engine, text

from core.errors import ConfigError, ContractError
from retrieval.config import FusionMethod, SearchConfig
from retrieval.database import write_transaction
from retrieval.store import Store


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What one store is searched with, unless `search.use_tuned` is false.

    Attributes:
        fusion: How the two scores become one.
        dense_weight: Share of the dense score.
        span_weight: Share of the best span in the dense score.
        k: How many hits, where the caller names no number.
        reranker: The reranker that the next two were found with; None: without one.
        rerank_depth: Fused chunks that it reads.
        rerank_weight: Share of its score; None: as it was trained for.
        likeness_weight: Share of the likeness to the best hit; 0 in what was tuned before it was tried.
        pair_weight: Share of word pairs in the lexical score; None: as configured, since nobody tried.
    """

    fusion: FusionMethod
    dense_weight: float
    span_weight: float
    k: int
    reranker: str | None
    rerank_depth: int
    rerank_weight: float | None
    likeness_weight: float = 0.0
    pair_weight: float | None = None

    @classmethod
    def of(cls, search: SearchConfig, k: int) -> "StoreSettings":
        """Return the settings that stand in a configuration."""
        names = {field.name for field in fields(cls)} - {"k"}
        return cls(k=k, **{name: getattr(search, name) for name in names})

    def apply(self, search: SearchConfig) -> SearchConfig:
        """Return a configuration with these settings; what was found with another reranker is left as it is."""
        names = ("fusion", "dense_weight", "span_weight", "likeness_weight")
        changed = replace(search, **{name: getattr(self, name) for name in names})
        if self.pair_weight is not None:
            changed = replace(changed, pair_weight=self.pair_weight)
        if self.reranker is None or self.reranker != search.reranker:
            return changed
        return replace(changed, rerank_depth=self.rerank_depth, rerank_weight=self.rerank_weight)

    def to_json(self) -> str:
        """Return them as the database keeps them."""
        return json.dumps({**asdict(self), "fusion": self.fusion.value}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str) -> "StoreSettings":
        """Read them back.

        Raises:
            ContractError: They are not what was written.
        """
        try:
            values: dict[str, Any] = json.loads(content)
            settings = cls(**{**values, "fusion": FusionMethod(values["fusion"])})
            settings.apply(SearchConfig(reranker=settings.reranker))  # which checks every range
        except (ValueError, TypeError, KeyError, ConfigError) as error:
            raise ContractError(
                f"a store's tuned settings cannot be read ({error}). Tune it again, or set search.use_tuned=false."
            ) from error
        return settings


def save_settings(engine: Engine, store: Store, settings: StoreSettings | None) -> None:
    """Keep the settings that a store is searched with from now on; None: those of the configuration."""
    with write_transaction(engine) as connection:
        connection.execute(
            text("UPDATE stores SET tuned = :tuned WHERE id = :id"),
            {"tuned": None if settings is None else settings.to_json(), "id": store.id},
        )
