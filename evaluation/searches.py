"""Retrieval by itself: a store is searched through the endpoint with every question, deeper than a model reads.

An assistant's answer shows only the few passages that its model read; here the first ten are looked at, by the call
that any client has (`client.vector_stores.search`). Does not know what an answer is worth.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import openai

from core.errors import EngineUnavailable, NotFound
from evaluation.answers import AskConfig, Passage
from evaluation.metrics import measure_percentile, rank_units
from evaluation.questions import Question
from retrieval.metrics import measure_ndcg, measure_recall, measure_reciprocal_rank

DEPTH = 10
RECALL_DEPTHS = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Search:
    """What a store found for one question.

    Attributes:
        question_id: Of the question.
        hits: Best first, at most DEPTH. Other servers tell no chunk ids: `chunk_id` is the file's id and the rank.
        latency_s: Seconds on the client's clock.
    """

    question_id: str
    hits: tuple[Passage, ...]
    latency_s: float


@dataclass(frozen=True, slots=True)
class SearchQuality:
    """Means over the questions whose gold documents or passages are known.

    Attributes:
        store: That was searched.
        n: Questions with gold.
        without: Questions without, or with gold in chunk ids, which the endpoint does not tell.
        recall: By depth, 0 to 1.
        ndcg_at_10: 0 to 1.
        mrr_at_10: 0 to 1.
        latency_p50_s: Of all searches.
        latency_p95_s: Of all searches.
    """

    store: str
    n: int
    without: int
    recall: Mapping[int, float]
    ndcg_at_10: float | None
    mrr_at_10: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None


def search_all(
    questions: Sequence[Question], store: str, config: AskConfig, on_search: Callable[[Search], None] = lambda _: None
) -> list[Search]:
    """Search a store with every question, one after the other.

    Raises:
        NotFound: The endpoint has no such store, or refuses the search.
        EngineUnavailable: It cannot be reached.
    """
    return asyncio.run(_search_all(questions, store, config, on_search))


async def _search_all(
    questions: Sequence[Question], store: str, config: AskConfig, on_search: Callable[[Search], None]
) -> list[Search]:
    key = os.environ.get("LOAM_API_KEY", "none")
    found = []
    client = openai.AsyncOpenAI(base_url=config.url, api_key=key, max_retries=config.retries, timeout=config.timeout_s)
    async with client:
        for question in questions:
            start = time.monotonic()
            try:
                page = await client.vector_stores.search(store, query=question.question, max_num_results=DEPTH)
            except openai.APIConnectionError as error:
                raise EngineUnavailable(f"{config.url}: wanted a server, found none. Start it.") from error
            except openai.APIError as error:
                raise NotFound(
                    f"store: wanted {store} at {config.url}, found a refusal: {error.message}. Give a store of its.",
                    param="store",
                ) from error
            hits = tuple(
                Passage(
                    n=rank,
                    store=store,
                    file=hit.filename,
                    heading=None,
                    page=None,
                    chunk_id=f"{hit.file_id} {rank}",
                    score=hit.score,
                    start=0,
                    end=0,
                    text="\n".join(part.text for part in hit.content),
                )
                for rank, hit in enumerate(page.data, start=1)
            )
            found.append(Search(question.id, hits, round(time.monotonic() - start, 4)))
            on_search(found[-1])
    return found


def measure_searches(questions: Sequence[Question], searches: Sequence[Search], store: str) -> SearchQuality:
    """Return how good the searches are against the gold of their questions."""
    by_id = {question.id: question for question in questions}
    judged = []
    for search in searches:
        question = by_id[search.question_id]
        gold = dict.fromkeys(question.passages or question.files, 1.0)
        if gold and not question.chunks:
            judged.append((rank_units(question, search.hits), gold))
    seconds = [search.latency_s for search in searches]

    def mean(values: Sequence[float]) -> float | None:
        return math.fsum(values) / len(values) if values else None

    recalls = {
        depth: mean([measure_recall(ranking, gold, depth) for ranking, gold in judged]) for depth in RECALL_DEPTHS
    }
    return SearchQuality(
        store=store,
        n=len(judged),
        without=len(searches) - len(judged),
        recall={depth: value for depth, value in recalls.items() if value is not None},
        ndcg_at_10=mean([measure_ndcg(*one, DEPTH) for one in judged]),
        mrr_at_10=mean([measure_reciprocal_rank(*one, DEPTH) for one in judged]),
        latency_p50_s=measure_percentile(seconds, 0.5),
        latency_p95_s=measure_percentile(seconds, 0.95),
    )
