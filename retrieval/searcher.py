"""Search over the stores of a data directory: the one entry that the command line, serve/ and evaluation/ call.

    query → [dense ∥ lexical] → fuse → read the passages → (rerank) → (threshold) → (variety) → (surroundings) → hits

A `Searcher` lives as long as its process and is safe in any thread. It holds each store's index in memory, and one
cheap query before each search tells whether another process has changed the store since. Does not know prompts or HTTP.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from core.errors import NotFound
from core.layout import DataDir
from retrieval import embedding, store
from retrieval.config import DEFAULT_K, Ann, EmbedderConfig, SearchConfig
from retrieval.database import open_database
from retrieval.dense import gather_candidates
from retrieval.diversity import pick_diverse, read_vectors
from retrieval.embedding import Embedder
from retrieval.erasure import erase_deleted
from retrieval.filters import Filter, select_chunks
from retrieval.fusion import ScoredChunks, join_chunks, order_chunks
from retrieval.indexes import StoreIndexes
from retrieval.interaction import Reading
from retrieval.lexical import pick_best, score_lexical
from retrieval.proximity import LOOKED_AT, look_closer, score_best
from retrieval.ranking import AS_CONFIGURED, Ranking, check_query, drop_below
from retrieval.rerank import Reranker
from retrieval.settings import StoreSettings
from retrieval.snapshot import StoreIndex
from retrieval.spans import score_spans
from retrieval.status import StoreStatus, list_stores
from retrieval.stopwatch import Stopwatch
from retrieval.store import Passage
from retrieval.surroundings import read_surroundings

HIT_KEYS = ("rank", "score", "store", "file", "chunk_id", "page", "heading", "start", "end", "text")
PASSAGE_KEYS = tuple(field.name for field in fields(Passage))
CONTEXT_KEYS = ("context_start", "context_end", "context")
MMR_POOL = 5
"""Candidates for each hit wanted, among which variety is looked for where there is no reranker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(Passage):
    """A passage found by a search.

    Attributes:
        rank: 1 for the best.
        score: What the hits are ordered by (but for `search.mmr_lambda`), 0 to 1: the weighted sum of the reranker's
            and the fused score where there is a reranker, else the fused one.
        dense_score: Cosine of query and chunk (its best window), -1 to 1; the same for any k, store or weight.
        span_score: Cosine of the query and the chunk's best span; where it has none, that of the chunk.
        lexical_score: BM25, 0 or more.
        fused_score: 0 to 1, relative to the best that this query found.
        rerank_score: The cross-encoder's probability, 0 to 1, comparable between queries; None without one.
        dense_rank: Place by `dense_score` among the candidates, 1 for the best.
        lexical_rank: Place by `lexical_score`; None where it holds no word of the query.
        fused_rank: Place by `fused_score`.
        rerank_rank: Place by `rerank_score` among those that were reranked; None without a reranker.
        context: The text with its neighbours, a slice of the document; None where `search.neighbours` is 0.
        context_start: First character of the context.
        context_end: One past its last.
    """

    rank: int
    score: float
    dense_score: float
    span_score: float
    lexical_score: float
    fused_score: float
    rerank_score: float | None
    dense_rank: int = 1
    lexical_rank: int | None = None
    fused_rank: int = 1
    rerank_rank: int | None = None
    context: str | None = None
    context_start: int | None = None
    context_end: int | None = None

    @property
    def relevance(self) -> float:
        """What a threshold is held against: the reranker's probability, 0 to 1, or `span_score` without one."""
        return self.span_score if self.rerank_score is None else self.rerank_score

    def to_json(self) -> dict[str, Any]:
        """Return the hit as the command line prints it; the context only where there is one."""
        values = asdict(self)
        return {key: values[key] for key in (*HIT_KEYS, *(CONTEXT_KEYS if self.context is not None else ()))}

    def describe_stages(self) -> dict[str, dict[str, float | int | None]]:
        """Return score and rank at each stage of the search, for people who want to see why it was found."""
        stages: dict[str, dict[str, float | int | None]] = {
            "lexical": {"score": round(self.lexical_score, 4), "rank": self.lexical_rank},
            "dense": {"score": round(self.dense_score, 4), "rank": self.dense_rank},
            "fused": {"score": round(self.fused_score, 4), "rank": self.fused_rank},
        }
        if self.rerank_score is not None:
            stages["reranked"] = {"score": round(self.rerank_score, 4), "rank": self.rerank_rank}
        return stages


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
        timings_ms: By stage: refresh, embed, filter, lexical, dense, spans, pairs, fuse, read, rerank, diversify,
            expand, total.
        below_min_score: Candidates that were left out by `search.min_score`.
    """

    query: str
    hits: list[Hit]
    searched: list[SearchedStore]
    timings_ms: dict[str, float]
    below_min_score: int = 0


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
        erase_deleted(self._engine, data)  # what a process that was killed after a deletion has left
        self._loaded_embedder: Embedder | None = None
        self._loaded_reranker: Reranker | None = None
        self._indexes = StoreIndexes(self._engine, data, self._config.index_device)
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the database; the searcher may not be used any more."""
        self._indexes.close()
        self._engine.dispose()

    def list_stores(self) -> list[StoreStatus]:
        """Return every store with its counts, by name."""
        return list_stores(self._engine)

    def warm_up(self, stores: Sequence[str]) -> None:
        """Load the embedder, the reranker and the indexes of some stores, so that the first search is quick.

        Raises:
            NotFound: A store or model does not exist.
            Conflict: A store's vectors are of another embedder.
        """
        for name in stores:
            self._indexes.read(name, self._embedder.identity)
        self._embedder.embed_query("ready")
        if self.reranker is not None:
            self.reranker.score("ready", [(None, "ready")])

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (texts, dimension) float32, unit rows: dot products are cosines. Nothing is cut off."""
        return embedding.embed_texts(texts, self._embedder)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many of the embedder's tokens each text has."""
        return [len(self._embedder.token_starts(text)) for text in texts]

    def read_passage(self, chunk_id: str) -> Passage:
        """Return a chunk by its id, with its surroundings where `search.neighbours` is set.

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
        if not self._config.neighbours:
            return passages[number]
        around = read_surroundings(self._engine, [number], self._config.neighbours).get(number)
        return passages[number] if around is None else replace(passages[number], **asdict(around))

    def gather(self, store_name: str, query: str) -> ScoredChunks:
        """Return the candidates of a query in one store with every score but those of word pairs and a reranker.

        Raises:
            NotFound: The store or a model does not exist.
            Conflict: The store's vectors are of another embedder.
        """
        index = self._indexes.read(store_name, self._embedder.identity)
        vector = self._embedder.embed_query(query)
        return self._find_candidates(index, query, vector, self._config.candidates, Stopwatch(), None)

    def score_pairs(self, store_name: str, query: str, numbers: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return how much of a query's word pairs the first LOOKED_AT chunks hold, 0 to 1; None: it has no pairs."""
        return self._score_pairs(self._indexes.read(store_name, self._embedder.identity), query, {}, 0, numbers)

    def rerank(self, query: str, numbers: NDArray[np.int64]) -> Reading:
        """Return what the reranker makes of some chunks; zeros for one that has gone."""
        assert self.reranker is not None  # noqa: S101  (the caller has configured one)
        passages = store.read_passages(self._engine, numbers.tolist())
        there = [place for place, number in enumerate(numbers.tolist()) if number in passages]
        texts = [(passages[int(numbers[place])].heading, passages[int(numbers[place])].text) for place in there]
        found = self.reranker.read(query, texts)
        scores = np.zeros(len(numbers), dtype=np.float32)
        means = np.zeros((len(numbers), found.means.shape[1]), dtype=np.float32)
        scores[there], means[there] = found.scores, found.means
        return Reading(scores, means)

    def rerank_texts(self, query: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Return the reranker's score of some texts, (texts,) float32, 0 to 1, and the tokens that were read.

        Raises:
            NotFound: None is configured, or there is no such model.
        """
        reranker = self.reranker
        if reranker is None:
            raise NotFound(
                "search.reranker: wanted a cross-encoder's name, found none. Set it.", param="search.reranker"
            )
        tokens = [reranker.count_tokens(text) for text in texts]
        scores = reranker.score(query, [(None, text) for text in texts])
        return scores, sum(tokens) + len(texts) * reranker.count_tokens(query)

    def search(
        self,
        stores: Sequence[str],
        query: str,
        k: int | None = None,
        filters: Filter | None = None,
        ranking: Ranking = AS_CONFIGURED,
    ) -> SearchResult:
        """Find the chunks that answer a query best.

        Args:
            stores: Names of the stores; their hits are merged by score.
            query: Free text.
            k: How many hits at most, 1 to 1000; None: what the stores were tuned to, else 5.
            filters: Which documents may be found, by their attributes; both sides choose among these only.
            ranking: What this search does otherwise than configured.

        Returns:
            The hits, best first, and what was searched.

        Raises:
            InputError: The query is empty, k is out of range or no store is named.
            NotFound: A store or model does not exist.
            Conflict: A store's vectors are of another embedder.
        """
        check_query(stores, query, k)
        watch = Stopwatch()
        with watch.stage("refresh"):
            indexes = [self._indexes.read(name, self._embedder.identity) for name in dict.fromkeys(stores)]
        with watch.stage("embed"):
            vector = self._embedder.embed_query(query)
        config, tuned_k = self._choose_settings(indexes)
        config = ranking.apply(config)
        k = k or tuned_k
        depth = max(k, config.candidates)
        found: list[ScoredChunks] = []
        passages: dict[int, Passage] = {}
        for index in indexes:
            with watch.stage("filter"):
                allowed = None if filters is None else self._read_allowed(index, filters)
            candidates = self._find_candidates(index, query, vector, depth, watch, allowed)
            with watch.stage("pairs"):
                score = partial(self._score_pairs, index, query, passages, k)
                found.append(look_closer(candidates, config, score))
        searched = [
            SearchedStore(index.store.name, index.store.generation, index.lexical.count, len(candidates.numbers))
            for index, candidates in zip(indexes, found, strict=True)
        ]
        hits, below = self._order(join_chunks(found), passages, query, k, config, watch)
        return SearchResult(query, hits, searched, watch.finish(), below)

    def _choose_settings(self, indexes: Sequence[StoreIndex]) -> tuple[SearchConfig, int]:
        """Return the settings of stores that were tuned alike, else the configured ones, and how many hits."""
        tuned = {index.store.tuned for index in indexes}
        text = tuned.pop() if len(tuned) == 1 and self._config.use_tuned else None
        if text is None:
            return self._config, DEFAULT_K
        settings = StoreSettings.from_json(text)
        return settings.apply(self._config), settings.k

    def _read_allowed(self, index: StoreIndex, filters: Filter) -> NDArray[np.bool_]:
        """Return (positions,) bool: which chunks of an index a filter lets through, by the database as it is now."""
        return np.isin(index.slots, select_chunks(self._engine, index.store, filters), assume_unique=True)

    def _find_candidates(
        self,
        index: StoreIndex,
        query: str,
        vector: NDArray[np.float32],
        depth: int,
        watch: Stopwatch,
        allowed: NDArray[np.bool_] | None,
    ) -> ScoredChunks:
        """Return the best chunks of each side among those allowed, each with both scores."""
        if index.live is not None:
            allowed = index.live if allowed is None else index.live & allowed
        with watch.stage("lexical"):
            lexical = score_lexical(index.lexical, query)
            if allowed is not None:
                lexical[~allowed] = 0
            by_words = pick_best(lexical, depth)
        if index.dense is None:
            nothing = np.zeros(0, dtype=np.float32)
            return ScoredChunks(index.slots[:0], nothing, nothing, nothing)
        with watch.stage("dense"):
            exact = self._config.ann is Ann.exact
            positions, dense = gather_candidates(index.dense, vector, depth, by_words, allowed, exact=exact)
        with watch.stage("spans"):
            spans = score_spans([run.spans for run in index.runs], vector, positions, dense)
        places = ((index.dense, positions),)
        return ScoredChunks(index.slots[positions], dense, spans, lexical[positions], places)

    def _score_pairs(
        self, index: StoreIndex, query: str, passages: dict[int, Passage], k: int, numbers: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Return what the query's word pairs say of the first LOOKED_AT; the `k` that are read go into `passages`."""

        def read_texts(numbers: NDArray[np.int64]) -> list[str]:
            passages.update(store.read_passages(self._engine, numbers[: max(k, LOOKED_AT)].tolist()))
            return [passages[number].text if number in passages else "" for number in numbers[:LOOKED_AT].tolist()]

        return score_best(index.lexical, query, read_texts, numbers)

    def _order(
        self,
        found: ScoredChunks,
        passages: dict[int, Passage],
        query: str,
        k: int,
        config: SearchConfig,
        watch: Stopwatch,
    ) -> tuple[list[Hit], int]:
        """Fuse, rerank where wanted and read the texts; return the hits and how many were below the threshold."""
        reranker = self.reranker if config.reranker is not None else None
        with watch.stage("fuse"):
            order, fused = order_chunks(found, config)
        below = 0
        if reranker is None and config.min_score is not None:
            order, below = drop_below(order, found.spans, config.min_score)
        depth = max(k, config.rerank_depth) if reranker else k if config.mmr_lambda is None else MMR_POOL * k
        with watch.stage("read"):
            order = self._read_best(found, order, depth, passages)
        scores, reranked = fused, None
        if reranker is not None and len(order):
            with watch.stage("rerank"):
                texts = [passages[int(number)] for number in found.numbers[order]]
                pairs = [(passage.heading, passage.text) for passage in texts]
                scores, reranked = fused.copy(), np.zeros(len(fused), dtype=np.float32)
                scores[order], reranked[order] = reranker.rank(query, pairs, fused[order], config.rerank_weight)
                order = order[np.argsort(-scores[order], kind="stable")]
            if config.min_score is not None:
                order, below = drop_below(order, reranked, config.min_score)
        order = self._diversify(order, scores, found, k, watch)
        hits = [
            _make_hit(passages[int(found.numbers[place])], rank, found, place, fused, scores, reranked)
            for rank, place in enumerate(order, start=1)
        ]
        return self._expand(hits, watch), below

    def _read_best(
        self, found: ScoredChunks, order: NDArray[np.int64], depth: int, passages: dict[int, Passage]
    ) -> NDArray[np.int64]:
        """Return the best so many of an order whose chunks have not gone since the index was made; read their texts."""
        kept = order[:0]
        while len(kept) < depth and len(order):
            batch, order = np.split(order, [depth - len(kept)])
            new = [number for number in found.numbers[batch].tolist() if number not in passages]
            passages |= store.read_passages(self._engine, new) if new else {}
            there = [number in passages for number in found.numbers[batch].tolist()]
            kept = np.concatenate([kept, batch[np.array(there, dtype=np.bool_)]])
        return kept

    def _diversify(
        self, order: NDArray[np.int64], scores: NDArray[np.float32], found: ScoredChunks, k: int, watch: Stopwatch
    ) -> NDArray[np.int64]:
        """Return the best k, or where `search.mmr_lambda` is set the k that are relevant and unlike each other."""
        if self._config.mmr_lambda is None or len(order) < 2:
            return order[:k]
        with watch.stage("diversify"):
            numbers = [int(number) for number in found.numbers[order]]
            vectors = read_vectors(self._engine, numbers, self._embedder.identity.dimension)
            return order[pick_diverse(scores[order], vectors, k, self._config.mmr_lambda)]

    def _expand(self, hits: list[Hit], watch: Stopwatch) -> list[Hit]:
        """Give each hit its surroundings where `search.neighbours` is set."""
        if not self._config.neighbours or not hits:
            return hits
        with watch.stage("expand"):
            numbers = [store.parse_chunk_id(hit.chunk_id) for hit in hits]
            around = read_surroundings(self._engine, numbers, self._config.neighbours)
            pairs = [(hit, around.get(number)) for hit, number in zip(hits, numbers, strict=True)]
        return [
            replace(hit, context=near.text, context_start=near.start, context_end=near.end) if near else hit
            for hit, near in pairs  # one without has gone between the two readings
        ]

    @property
    def embedder(self) -> Embedder:
        """What queries and passages are embedded with; made at the first call."""
        return self._embedder

    @property
    def _embedder(self) -> Embedder:
        with self._lock:
            if self._loaded_embedder is None:
                self._loaded_embedder = self._make_embedder()
            return self._loaded_embedder

    def _load_embedder(self) -> Embedder:
        return embedding.open_embedder(self._data, self._embedder_config)

    @property
    def reranker(self) -> Reranker | None:
        """The configured reranker, made at the first call; None where there is none."""
        with self._lock:
            if self._loaded_reranker is None and self._config.reranker is not None:
                folder = self._data.model(self._config.reranker)
                self._loaded_reranker = Reranker(folder, self._embedder_config)
            return self._loaded_reranker


def _make_hit(
    passage: Passage,
    rank: int,
    found: ScoredChunks,
    place: np.int64,
    fused: NDArray[np.float32],
    scores: NDArray[np.float32],
    reranked: NDArray[np.float32] | None,
) -> Hit:
    return Hit(
        **{name: getattr(passage, name) for name in PASSAGE_KEYS},
        rank=rank,
        score=float(scores[place]),
        dense_score=float(found.dense[place]),
        span_score=float(found.spans[place]),
        lexical_score=float(found.lexical[place]),
        fused_score=float(fused[place]),
        rerank_score=None if reranked is None else float(reranked[place]),
        dense_rank=_rank(found.dense, place),
        lexical_rank=_rank(found.lexical, place) if found.lexical[place] > 0 else None,
        fused_rank=_rank(fused, place),
        rerank_rank=None if reranked is None else _rank(reranked, place),
    )


def _rank(scores: NDArray[np.float32], place: np.int64) -> int:
    """Return a candidate's place by a score, 1 for the best; those that are level share one."""
    return int((scores > scores[place]).sum()) + 1
