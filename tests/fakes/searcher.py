"""A searcher over passages in memory: what serve/ needs of retrieval's Searcher, without a database or a model.

Texts become vectors by hashing their words, so that equal words are near. Does not know stores' files or snapshots.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import NotFound
from retrieval.filters import Filter
from retrieval.ranking import AS_CONFIGURED, Ranking
from retrieval.searcher import Hit, SearchedStore, SearchResult
from retrieval.store import Passage

DIMENSION = 256


def make_passage(
    chunk_id: str, text: str, *, store: str = "acme", file: str = "a.md", heading: str | None = None
) -> Passage:
    """Return a passage as retrieval would."""
    return Passage(
        store=store, file=file, chunk_id=chunk_id, page=None, heading=heading, start=0, end=len(text), text=text
    )


def make_hit(passage: Passage, rank: int = 1, score: float = 0.9) -> Hit:
    """Return a passage as a search would."""
    fields = {name: getattr(passage, name) for name in Passage.__dataclass_fields__}
    return Hit(
        **fields,
        rank=rank,
        score=score,
        dense_score=score,
        span_score=score,
        lexical_score=1.0,
        fused_score=score,
        rerank_score=None,
    )


class FakeSearcher:
    """Searches a list of passages by their words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Take the passages."""
        self.passages = list(passages)
        self.queries: list[str] = []

    def search(
        self,
        stores: Sequence[str],
        query: str,
        k: int = 5,
        filters: Filter | None = None,
        ranking: Ranking = AS_CONFIGURED,
    ) -> SearchResult:
        """Return the passages nearest to a query and not below its threshold."""
        if filters is not None:
            raise TypeError("this searcher has no attributes to filter by")
        self.queries.append(query)
        known = {passage.store for passage in self.passages}
        if missing := [name for name in stores if name not in known]:
            raise NotFound(f"store {missing[0]!r}: there is none")
        candidates = [passage for passage in self.passages if passage.store in stores]
        scores = self.embed_texts([passage.text for passage in candidates]) @ self.embed_texts([query])[0]
        order = np.argsort(-scores, kind="stable")
        near = [at for at in order if ranking.min_score is None or scores[at] >= ranking.min_score]
        hits = [make_hit(candidates[at], rank, float(scores[at])) for rank, at in enumerate(near[:k], start=1)]
        searched = [SearchedStore(name, 1, len(candidates), len(candidates)) for name in stores]
        return SearchResult(query, hits, searched, {"total": 0.0}, len(order) - len(near))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors; (texts, DIMENSION)."""
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % DIMENSION] += 1.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-9))
        return unit

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return each text's number of words."""
        return [len(text.split()) for text in texts]

    def read_passage(self, chunk_id: str) -> Passage:
        """Return a passage by its id."""
        for passage in self.passages:
            if passage.chunk_id == chunk_id:
                return passage
        raise NotFound(f"chunk {chunk_id!r}: it is not there", param="chunk_id")

    def warm_up(self, stores: Sequence[str]) -> None:
        """Do nothing: all is loaded."""
