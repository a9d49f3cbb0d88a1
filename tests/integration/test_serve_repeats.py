"""Promise A3: a POST that comes again makes one object, through the stock client's own retries and by key."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from openai import _base_client

from retrieval.database import write_transaction
from serve.keys import create_key
from tests.fakes.cutting_proxy import CuttingProxy, cutting_proxy
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, PATIENCE_S, RunningGateway, searching_gateway

CUTS = 20 if os.environ.get("LOAM_TEST_FULL") else 3
"""Of each of six operations: more than a hundred in all."""
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
CONTENT = json.dumps(ROW).encode() + b"\n"
SAID = {"rating": "up", "model": BASE, "answer": "26 months."}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with searching_gateway(tmp_path_factory.mktemp("repeats")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(gateway: RunningGateway) -> Iterator[CuttingProxy]:
    with cutting_proxy(int(gateway.url.rpartition(":")[2])) as running:
        yield running


@pytest.fixture
def cut_client(proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """The stock client with its own retries, only quicker, behind the proxy."""
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.02)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="none", timeout=PATIENCE_S) as client:
        yield client


def ask_feedback(client: openai.OpenAI, question: str | None = None) -> dict[str, Any]:
    """Keep feedback, or list it, by the stock client with its retries: the route is one of our own."""
    path = "/loam/feedback"
    if question is None:
        return cast("dict[str, Any]", client.get(f"{path}?limit=100", cast_to=object))
    return cast("dict[str, Any]", client.post(path, cast_to=object, body={**SAID, "question": question}))


def list_operations(client: openai.OpenAI) -> dict[str, tuple[Callable[[int], str], Callable[[], list[str]]]]:
    """Return how to make each kind of object, each time with another content, and how to list them."""
    store = client.vector_stores.create(name="s").id
    files = [client.files.create(file=("a.jsonl", CONTENT), purpose="fine-tune").id for _ in range(CUTS)]
    batches = client.vector_stores.file_batches
    return {
        "files": (
            lambda turn: client.files.create(file=(f"{turn}.jsonl", CONTENT), purpose="fine-tune").id,
            lambda: [one.id for one in client.files.list()],
        ),
        "vector_stores": (
            lambda turn: client.vector_stores.create(name=f"n{turn}").id,
            lambda: [one.id for one in client.vector_stores.list()],
        ),
        "files in them": (
            lambda turn: client.vector_stores.files.create(store, file_id=files[turn]).id,
            lambda: [one.id for one in client.vector_stores.files.list(store)],
        ),
        "batches": (lambda turn: batches.create(store, file_ids=[files[turn]], attributes={"t": turn}).id, list),
        "jobs": (
            lambda turn: client.fine_tuning.jobs.create(model=BASE, training_file=files[turn], seed=turn).id,
            lambda: [one.id for one in client.fine_tuning.jobs.list()],
        ),
        "feedback": (
            lambda turn: str(ask_feedback(client, f"{turn}?")["id"]),
            lambda: [one["id"] for one in ask_feedback(client)["data"]],
        ),
    }


def count_batches(gateway: RunningGateway) -> int:
    with write_transaction(gateway.database) as connection:
        return int(connection.exec_driver_sql("SELECT COUNT(*) FROM file_batches").scalar_one())


@pytest.mark.parametrize("kind", ["files", "vector_stores", "files in them", "batches", "jobs", "feedback"])
def test_a_cut_answer_makes_no_second_object(
    gateway: RunningGateway, proxy: CuttingProxy, cut_client: openai.OpenAI, kind: str,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    make, show = list_operations(cut_client)[kind]
    for turn in range(CUTS):
        before, batches, cut = set(show()), count_batches(gateway), proxy.was_cut
        proxy.cuts = 1 + turn % 2  # the client tries three times
        made = make(turn)
        assert proxy.was_cut == cut + 1 + turn % 2
        assert count_batches(gateway) - batches == (kind == "batches")
        assert kind == "batches" or set(show()) - before == {made}
    record_property("objects_with_a_cut_answer", CUTS)


def test_the_same_twice_on_purpose_makes_two(gateway: RunningGateway) -> None:
    client = gateway.client()
    first, second = (client.vector_stores.create(name="same").id for _ in range(2))
    assert first != second
    retry = {"x-stainless-retry-count": "1"}
    third = client.vector_stores.create(name="same", extra_headers=retry).id
    assert third not in {first, second}, "the earlier answers have reached their client"


def test_a_key_holds_for_one_request(gateway: RunningGateway) -> None:
    client = gateway.client()
    key = {"Idempotency-Key": "key-1"}
    made = client.vector_stores.create(name="keyed", extra_headers=key)
    assert client.vector_stores.create(name="keyed", extra_headers=key) == made
    with pytest.raises(openai.UnprocessableEntityError) as reused:
        client.vector_stores.create(name="other", extra_headers=key)
    assert reused.value.code == "idempotency_key_reused"
    with pytest.raises(openai.UnprocessableEntityError):
        client.files.create(file=("a.jsonl", CONTENT), purpose="fine-tune", extra_headers=key)
    with pytest.raises(openai.BadRequestError, match="255"):
        client.vector_stores.create(name="x", extra_headers={"Idempotency-Key": "k" * 256})
    file_key = {"Idempotency-Key": "key-2"}
    files = {client.files.create(file=("a", CONTENT), purpose="batch", extra_headers=file_key).id for _ in range(3)}
    assert len(files) == 1


def test_a_key_whose_request_failed_is_free_again(gateway: RunningGateway) -> None:
    client = gateway.client()
    key = {"Idempotency-Key": "key-3"}
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.create(file_ids=["file-none"], extra_headers=key)
    assert client.vector_stores.create(name="good", extra_headers=key).name == "good"


def test_a_full_disk_takes_no_key_for_good(gateway: RunningGateway) -> None:
    client = gateway.client()
    made, failed = ({"Idempotency-Key": f"key-{word}"} for word in ("made", "failed"))
    with gateway.full_disk("UPDATE idempotency_keys"):
        first = client.vector_stores.create(name="made once", extra_headers=made)
        with pytest.raises(openai.InternalServerError, match="disk space"):
            client.vector_stores.create(name="made once", extra_headers=made)
    with gateway.full_disk("DELETE FROM idempotency_keys WHERE owner"), pytest.raises(openai.NotFoundError):
        client.vector_stores.create(file_ids=["file-none"], extra_headers=failed)
    assert client.vector_stores.create(name="made once", extra_headers=made) == first
    assert [store.name for store in client.vector_stores.list()].count("made once") == 1
    with pytest.raises(openai.UnprocessableEntityError):
        client.vector_stores.create(name="another", extra_headers=made)
    assert client.vector_stores.create(name="good", extra_headers=failed).name == "good"


def test_the_same_key_at_the_same_time_makes_one(gateway: RunningGateway) -> None:
    before = {store.id for store in gateway.client().vector_stores.list()}
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(
            gateway.request(
                "POST",
                "/v1/vector_stores",
                json={"name": "at once"},
                headers={"Idempotency-Key": "key-4"},
            )
        )

    threads = [threading.Thread(target=post) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 409}
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(ids) == 1
    assert {store.id for store in gateway.client().vector_stores.list()} - before == ids
    for answer in answers:
        if answer.status_code == 409:
            assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("kind", ["aliases", "assistants"])
def test_a_retry_does_not_move_a_name_back(gateway: RunningGateway, proxy: CuttingProxy, kind: str) -> None:
    store = gateway.client().vector_stores.create(name="s").id
    first = {"name": f"moved-{kind}", "model": BASE, **({"vector_store_ids": [store]} if kind == "assistants" else {})}
    proxy.cuts = 1
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{proxy.port}/v1/loam/{kind}", json=first, timeout=PATIENCE_S)
    assert gateway.request("POST", f"/v1/loam/{kind}", json={**first, "model": ALIAS}).status_code == 200
    retry = gateway.request("POST", f"/v1/loam/{kind}", json=first, headers={"x-stainless-retry-count": "1"})
    assert (retry.status_code, retry.json()["model"]) == (200, BASE), "what the first attempt was answered"
    (kept,) = [one for one in gateway.request("GET", f"/v1/loam/{kind}").json()["data"] if one["name"] == first["name"]]
    assert kept["model"] == ADAPTER


def test_feedback_that_comes_again_is_not_kept_in_its_key(gateway: RunningGateway) -> None:
    said = {**SAID, "question": "A secret question?"}

    def send() -> httpx.Response:
        return gateway.request("POST", "/v1/loam/feedback", json=said, headers={"Idempotency-Key": "key-said"})

    made = send().json()
    assert send().json() == made
    with write_transaction(gateway.database) as connection:
        kept = connection.exec_driver_sql("SELECT body FROM idempotency_keys WHERE key = 'key-said'").scalar_one()
    assert bytes(kept) == made["id"].encode()
    assert gateway.request("DELETE", f"/v1/loam/feedback/{made['id']}").status_code == 200
    assert send().status_code == 404


def test_an_answer_that_was_read_is_not_kept(gateway: RunningGateway) -> None:
    before = set(gateway.parts.repeats._attempts)
    with httpx.Client(base_url=gateway.url) as client:  # one connection: who asks on has read
        for turn in range(5):
            client.post("/v1/vector_stores", json={"name": f"read {turn}"}).raise_for_status()
        client.get("/health").raise_for_status()
    assert set(gateway.parts.repeats._attempts) <= before


def test_keys_are_ones_own(gateway: RunningGateway) -> None:
    clients = [gateway.client(create_key(gateway.database, owner)[1]) for owner in ("one", "two")]
    made: list[Any] = [
        client.vector_stores.create(name="x", extra_headers={"Idempotency-Key": "k"}) for client in clients
    ]
    assert made[0].id != made[1].id
