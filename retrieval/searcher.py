"""Search over the stores of a data directory: the one entry that the command line, serve/ and evaluation/ call.

    query → [dense ∥ lexical] → fuse → (rerank) → read the passages → hits

A `Searcher` lives as long as its process and is safe in any thread. It holds each store's index in memory, and one
cheap query before each search tells whether another process has changed the store since. Does not know prompts or HTTP.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from core.errors import InputError, NotFound
from core.layout import DataDir
from retrieval import embedding, store
from retrieval.config import MAX_K, EmbedderConfig, SearchConfig
from retrieval.database import open_database
from retrieval.dense import score_chunks, search_dense
from retrieval.embedding import Embedder, contextualise
from retrieval.fusion import fuse_scores
from retrieval.indexes import StoreIndexes
from retrieval.lexical import pick_best, score_lexical
from retrieval.rerank import Reranker
from retrieval.snapshot import StoreIndex
from retrieval.store import Passage, StoreStatus

HIT_KEYS = ("rank", "score", "store", "file", "chunk_id", "page", "heading", "start", "end", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(Passage):
    """A passage found by a search.

    Attributes:
        rank: 1 for the best.
        score: What the hits are ordered by: the reranker's score where there is one, else the fused one.
        dense_score: Cosine of query and chunk (its best window), -1 to 1; the same for any k, store or weight.
        lexical_score: BM25, 0 or more.
        fused_score: 0 to 1, relative to the best that this query found.
        rerank_score: The cross-encoder's; None without one.
    """

    rank: int
    score: float
    dense_score: float
    lexical_score: float
    fused_score: float
    rerank_score: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the hit as the command line prints it."""
        values = asdict(self)
        return {key: values[key] for key in HIT_KEYS}


@dataclass(frozen=True, slots=True)
class SearchedStore:
    """What was searched: a store, its generation then, its chunks, and how many of them were candidates."""

    store: str
    generation: int
    chunks: int
    candidates: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        query: As it was given.
        hits: Best first.
        searched: Each store.
        timings_ms: By stage: refresh, embed, dense, lexical, fuse, rerank, read, total.
    """

    query: str
    hits: list[Hit]
    searched: list[SearchedStore]
    timings_ms: dict[str, float]


@dataclass(slots=True)
class _Candidates:
    """Chunks of one or more stores with their scores; parallel arrays.

    Attributes:
        numbers: Chunk numbers of the database.
        dense: Cosines.
        lexical: BM25 scores.
    """

    numbers: NDArray[np.int64]
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]


class _Stopwatch:
    """Adds up the milliseconds of each stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def finish(self) -> dict[str, float]:
        total = (time.perf_counter() - self._start) * 1e3
        return {name: round(value, 3) for name, value in {**self.timings_ms, "total": total}.items()}


class Searcher:
    """Searches the stores of one data directory. Thread-safe; nothing heavy is loaded before it is needed."""

    def __init__(
        self,
        data: DataDir,
        embedder: EmbedderConfig | None = None,
        search: SearchConfig | None = None,
        *,
        make_embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        """Open the database.

        Args:
            data: The data directory.
            embedder: Which embedder; it must be the one that made the stores' vectors.
            search: How chunks are found.
            make_embedder: Makes the embedder in place of the configured one, for tests.

        Raises:
            ContractError: The database is damaged or newer.
        """
        self._data = data
        self._config = search or SearchConfig()
        self._embedder_config = embedder or EmbedderConfig()
        self._make_embedder = make_embedder or self._load_embedder
        self._engine: Engine = open_database(data.database)
        self._loaded_embedder: Embedder | None = None
        self._loaded_reranker: Reranker | None = None
        self._indexes = StoreIndexes(self._engine, data, self._config.index_device)
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the database; the searcher may not be used any more."""
        self._engine.dispose()

    def list_stores(self) -> list[StoreStatus]:
        """Return every store with its counts, by name."""
        return store.list_stores(self._engine)

    def warm_up(self, stores: Sequence[str]) -> None:
        """Load the embedder, the reranker and the indexes of some stores, so that the first search is quick.

        Raises:
            NotFound: A store or model does not exist.
            Conflict: A store's vectors are of another embedder.
        """
        for name in stores:
            self._indexes.read(name, self._embedder.identity)
        self._embedder.embed_query("ready")
        if self._reranker is not None:
            self._reranker.score("ready", ["ready"])

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (texts, dimension) float32, unit rows: dot products are cosines. Nothing is cut off."""
        return embedding.embed_texts(texts, self._embedder)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many of the embedder's tokens each text has."""
        return [len(self._embedder.token_starts(text)) for text in texts]

    def read_passage(self, chunk_id: str) -> Passage:
        """Return a chunk by its id.

        Raises:
            NotFound: It does not exist, or its document has been replaced since.
        """
        number = store.parse_chunk_id(chunk_id)
        passages = store.read_passages(self._engine, [number])
        if number not in passages:
            raise NotFound(
                f"chunk {chunk_id!r}: it is not there; its document may have been replaced. Search again.",
                param="chunk_id",
            )
        return passages[number]

    def search(self, stores: Sequence[str], query: str, k: int = 5) -> SearchResult:
        """Find the chunks that answer a query best.

        Args:
            stores: Names of the stores; their hits are merged by score.
            query: Free text.
            k: How many hits at most, 1 to 1000.

        Returns:
            The hits, best first, and what was searched.

        Raises:
            InputError: The query is empty, k is out of range or no store is named.
            NotFound: A store or model does not exist.
            Conflict: A store's vectors are of another embedder.
        """
        check_query(stores, query, k)
        watch = _Stopwatch()
        with watch.stage("refresh"):
            indexes = [self._indexes.read(name, self._embedder.identity) for name in dict.fromkeys(stores)]
        with watch.stage("embed"):
            vector = self._embedder.embed_query(query)
        depth = max(k, self._config.candidates)
        found = [self._find_candidates(index, query, vector, depth, watch) for index in indexes]
        searched = [
            SearchedStore(index.store.name, index.store.generation, len(index.numbers), len(candidates.numbers))
            for index, candidates in zip(indexes, found, strict=True)
        ]
        hits = self._order(_join(found), query, k, watch)
        return SearchResult(query, hits, searched, watch.finish())

    def _find_candidates(
        self, index: StoreIndex, query: str, vector: NDArray[np.float32], depth: int, watch: _Stopwatch
    ) -> _Candidates:
        """Return the best chunks of each side, each with both scores."""
        with watch.stage("lexical"):
            lexical = score_lexical(index.lexical, query)
            by_words = pick_best(lexical, depth)
        if index.dense is None:
            return _Candidates(index.numbers[:0], np.zeros(0, np.float32), np.zeros(0, np.float32))
        with watch.stage("dense"):
            by_vector, cosines = search_dense(index.dense, vector, depth)
            others = np.setdiff1d(by_words, by_vector)
            positions = np.concatenate([by_vector, others])
            dense = np.concatenate([cosines, score_chunks(index.dense, vector, others)])
        return _Candidates(index.numbers[positions], dense, lexical[positions])

    def _order(self, found: _Candidates, query: str, k: int, watch: _Stopwatch) -> list[Hit]:
        """Fuse, rerank where wanted, and read the texts of the best."""
        with watch.stage("fuse"):
            fused = fuse_scores(found.dense, found.lexical, self._config.fusion, self._config.dense_weight)
            order = np.lexsort((found.numbers, -fused))  # of equal scores the older chunk first: ties are stable
        reranker = self._reranker
        depth = max(k, self._config.rerank_depth) if reranker else k
        order = order[:depth]
        with watch.stage("read"):
            passages = store.read_passages(self._engine, [int(found.numbers[place]) for place in order])
        order = [place for place in order if int(found.numbers[place]) in passages]  # gone since the index was made
        scores: dict[int, float | None] = dict.fromkeys(map(int, order))
        if reranker and order:
            with watch.stage("rerank"):
                texts = [passages[int(found.numbers[place])] for place in order]
                values = reranker.score(query, [contextualise(passage.heading, passage.text) for passage in texts])
            scores = {int(place): float(value) for place, value in zip(order, values, strict=True)}
            order = sorted(order, key=lambda place: -(scores[int(place)] or 0.0))
        return [
            _make_hit(passages[int(found.numbers[place])], rank, found, place, fused[place], scores[int(place)])
            for rank, place in enumerate(order[:k], start=1)
        ]

    @property
    def _embedder(self) -> Embedder:
        with self._lock:
            if self._loaded_embedder is None:
                self._loaded_embedder = self._make_embedder()
            return self._loaded_embedder

    def _load_embedder(self) -> Embedder:
        folder = self._data.model(self._embedder_config.name)
        return embedding.SentenceEmbedder(folder, self._embedder_config)

    @property
    def _reranker(self) -> Reranker | None:
        with self._lock:
            if self._loaded_reranker is None and self._config.reranker is not None:
                folder = self._data.model(self._config.reranker)
                self._loaded_reranker = Reranker(folder, self._embedder_config.device)
            return self._loaded_reranker


def check_query(stores: Sequence[str], query: str, k: int) -> None:
    """Refuse a search that cannot be done.

    Raises:
        InputError: The query is empty, k is out of range or no store is named.
    """
    if not stores:
        raise InputError("store: wanted at least one store's name, found none.", param="store")
    if not query.strip():
        raise InputError("query: wanted some text, found none.", param="query")
    if not 1 <= k <= MAX_K:
        raise InputError(f"k: wanted 1 to {MAX_K}, found {k}.", param="k")


def _join(found: Sequence[_Candidates]) -> _Candidates:
    return _Candidates(
        np.concatenate([candidates.numbers for candidates in found]),
        np.concatenate([candidates.dense for candidates in found]),
        np.concatenate([candidates.lexical for candidates in found]),
    )


def _make_hit(
    passage: Passage, rank: int, found: _Candidates, place: np.int64, fused: np.float32, reranked: float | None
) -> Hit:
    return Hit(
        **asdict(passage),
        rank=rank,
        score=float(fused) if reranked is None else reranked,
        dense_score=float(found.dense[place]),
        lexical_score=float(found.lexical[place]),
        fused_score=float(fused),
        rerank_score=reranked,
    )
