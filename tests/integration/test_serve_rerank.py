"""POST /v1/rerank with a tiny cross-encoder, and searches that leave it out."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from core.config import Device
from retrieval.config import EmbedderConfig
from retrieval.rerank import Reranker
from tests.fakes.engine import BASE
from tests.fakes.gateway import EMBEDDER, RunningGateway, running_gateway, searching_gateway
from tests.fakes.tiny_reranker import write_tiny_reranker

RERANKER = "tiny"
QUERY = "filter of the pump"
TEXTS = ["duck eats grass", "the pump has a filter", "warranty of every month"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with a cross-encoder."""
    folder = tmp_path_factory.mktemp("rerank")
    write_tiny_reranker(folder / "models" / RERANKER, " ".join([QUERY, *TEXTS]))
    with searching_gateway(folder, reranker=RERANKER) as running:
        yield running


def rerank(gateway: RunningGateway, **more: Any) -> httpx.Response:
    return gateway.post("/v1/rerank", {"model": RERANKER, "query": QUERY, "documents": TEXTS, **more})


def test_texts_come_best_first_with_the_rerankers_own_scores(gateway: RunningGateway) -> None:
    scores = Reranker(gateway.folder / "models" / RERANKER, EmbedderConfig(device=Device.cpu)).score(
        QUERY, [(None, text) for text in TEXTS]
    )
    answer = rerank(gateway).json()
    found = [(result["index"], result["document"]["text"]) for result in answer["results"]]
    order = sorted(range(len(TEXTS)), key=lambda place: -scores[place])
    assert found == [(place, TEXTS[place]) for place in order]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(sorted(scores, reverse=True))
    assert answer["model"] == RERANKER
    assert answer["usage"]["total_tokens"] == 3 * 4 + sum(len(text.split()) for text in TEXTS)


def test_the_best_alone_and_without_their_texts(gateway: RunningGateway) -> None:
    objects = [{"text": text} for text in TEXTS]
    whole = rerank(gateway).json()["results"]
    answer = rerank(gateway, documents=objects, top_n=2, return_documents=False).json()
    assert answer["results"] == [{name: one[name] for name in ("index", "relevance_score")} for one in whole[:2]]


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (404, {"model": EMBEDDER}),
        (404, {"model": BASE}),
        (404, {"model": "none"}),
        (400, {"documents": []}),
        (400, {"documents": [""]}),
        (400, {"documents": [{"title": "x"}]}),
        (400, {"documents": ["x"] * 1001}),
        (400, {"query": ""}),
        (400, {"top_n": 0}),
        (400, {"max_chunks_per_doc": 3}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_done_is_refused(gateway: RunningGateway, status: int, change: dict[str, Any]) -> None:
    answer = rerank(gateway, **change)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_gateway_without_a_reranker_says_how_to_get_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_gateway(tmp_path_factory.mktemp("plain")) as running:
        answer = rerank(running, model=EMBEDDER)
    assert answer.status_code == 404
    assert "search.reranker=NAME" in answer.json()["error"]["message"]


def test_a_search_shows_the_rerankers_probability_and_can_leave_it_out(gateway: RunningGateway) -> None:
    client = gateway.client()
    files = [
        client.files.create(file=(f"{n}.txt", text.encode()), purpose="assistants") for n, text in enumerate(TEXTS)
    ]
    store = client.vector_stores.create(name="s").id
    client.vector_stores.file_batches.create_and_poll(store, file_ids=[file.id for file in files])
    expected = {TEXTS[one["index"]]: one["relevance_score"] for one in rerank(gateway).json()["results"]}

    def search(**options: Any) -> dict[str, float]:
        hits = client.vector_stores.search(store, query=QUERY, ranking_options=options)  # type: ignore[arg-type]
        return {hit.content[0].text: hit.score for hit in hits}

    assert search(ranker="auto") == pytest.approx(expected, abs=1e-5)
    plain = search(ranker="none")
    assert plain != pytest.approx(expected, abs=1e-5)
    assert plain["the pump has a filter"] == max(plain.values())
    middle = sorted(expected.values())[1]
    assert len(search(score_threshold=middle + 1e-4)) == 1
    assert len(search(score_threshold=0)) == 3
    assert list(search(ranker="none", score_threshold=0.5)) == ["the pump has a filter"]
