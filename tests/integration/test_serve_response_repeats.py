"""Responses that are asked for again: one stored response, the model asked once, streamed or whole. Promise A3."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import _base_client
from openai.types.responses import Response
from sqlalchemy import text

from retrieval.database import read_transaction
from serve.answering import AssistantConfig
from serve.keys import create_key
from tests.fakes.cutting_proxy import cutting_proxy
from tests.fakes.engine import BASE
from tests.fakes.gateway import PATIENCE_S, RunningGateway, running_gateway, searching_gateway
from tests.fakes.handbook import HANDBOOK, QUESTION, WARRANTY, handbook_gateway
from tests.fakes.strict_answers import check_answer, read_events

CUTS = 25 if os.environ.get("LOAM_TEST_FULL") else 2
"""Of each of four kinds of responses: a hundred in all."""
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
CALLS = [{"name": "get_weather", "arguments": '{"city": "Leeds"}'}, {"name": "get_weather", "arguments": "{}"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway with an assistant over a store of the command line."""
    desk = AssistantConfig(model=BASE, stores=[HANDBOOK])
    with handbook_gateway(tmp_path_factory.mktemp("repeats"), desk) as running:
        yield running


@pytest.fixture(autouse=True)
def _script(gateway: RunningGateway) -> None:
    gateway.script(reply=f"I know this:\n{WARRANTY}")


def key(name: str) -> dict[str, str]:
    """Return the header that makes a request safe to repeat."""
    return {"Idempotency-Key": name}


def count_responses(gateway: RunningGateway) -> int:
    with read_transaction(gateway.database) as connection:
        return int(connection.exec_driver_sql("SELECT COUNT(*) FROM responses").scalar_one())


def respond(client: openai.OpenAI, **asked: Any) -> tuple[Any, list[str]]:
    """Return a response, and the names of its events where it is streamed."""
    answer: Any = client.responses.create(**asked)
    if not asked.get("stream"):
        check_answer(answer, Response)
        return answer, []
    events = read_events(answer)
    check_answer(events[-1].response, Response)
    return events[-1].response, [event.type for event in events]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"model": BASE},
    "from documents": {"model": "desk", "include": ["file_search_call.results"]},
    "cut": {"model": BASE, "max_output_tokens": 2},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stream", [False, True])
def test_the_same_key_gives_the_stored_response(gateway: RunningGateway, kind: str, stream: bool) -> None:
    client, asked = gateway.client(), {**KINDS[kind], "input": QUESTION, "stream": stream}
    asked["extra_headers"] = key(f"{kind} {stream}")
    made, events = respond(client, **asked)
    rows, requests = count_responses(gateway), len(gateway.state()["requests"])
    again, repeated = respond(client, **asked)
    assert again == made
    assert list(dict.fromkeys(repeated)) == list(dict.fromkeys(events)), "the same events in the same order"
    assert (count_responses(gateway), len(gateway.state()["requests"])) == (rows, requests)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_functions_come_again(gateway: RunningGateway, stream: bool) -> None:
    gateway.script(reply="Let me look.", calls=CALLS)
    asked: dict[str, Any] = {"model": BASE, "input": "Weather?", "tools": [WEATHER], "stream": stream}
    (made, events), (again, repeated) = (
        respond(gateway.client(), **asked, extra_headers=key(f"calls {stream}")) for _ in range(2)
    )
    assert again == made
    assert [item.type for item in again.output] == ["message", "function_call", "function_call"]
    assert list(dict.fromkeys(repeated)) == list(dict.fromkeys(events))


def test_a_key_holds_for_one_request_of_one_owner(gateway: RunningGateway) -> None:
    client = gateway.client()
    made = client.responses.create(model=BASE, input="x", extra_headers=key("one"))
    with pytest.raises(openai.UnprocessableEntityError) as reused:
        client.responses.create(model=BASE, input="y", extra_headers=key("one"))
    assert reused.value.code == "idempotency_key_reused"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="deleted"):
        client.responses.create(model=BASE, input="x", extra_headers=key("one"))


def test_what_is_not_stored_is_answered_anew(gateway: RunningGateway) -> None:
    client, rows = gateway.client(), count_responses(gateway)
    asked: dict[str, Any] = {"model": BASE, "input": "x", "store": False, "extra_headers": key("unstored")}
    assert client.responses.create(**asked).id != client.responses.create(**asked).id
    assert count_responses(gateway) == rows


def test_the_key_keeps_no_word_of_the_answer_and_none_of_a_deleted_document(tmp_path: Path) -> None:
    with searching_gateway(tmp_path) as running:
        client = running.client()
        running.script(reply="Nothing to say.")
        store = client.vector_stores.create(name="s").id
        file = client.files.create(file=("warranty.md", WARRANTY.encode()), purpose="assistants").id
        client.vector_stores.files.create_and_poll(file, vector_store_id=store)
        tool: Any = {"type": "file_search", "vector_store_ids": [store], "ranking_options": {"score_threshold": 0}}
        asked: Any = {"model": BASE, "input": QUESTION, "tools": [tool], "include": ["file_search_call.results"]}
        made = client.responses.create(**asked, extra_headers=key("k"))
        with read_transaction(running.database) as connection:
            row = connection.execute(text("SELECT status, body FROM idempotency_keys")).one()
        assert tuple(row) == (200, made.id.encode())
        client.files.delete(file)
        again: Any = client.responses.create(**asked, extra_headers=key("k"))
        assert (again.id, again.output_text) == (made.id, "Nothing to say.")
        assert again.output[0].results == []


@pytest.mark.parametrize("script", [{"error_after": 3}, {"break_after": 3}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_key_whose_answer_failed_is_free_again(tmp_path: Path, script: dict[str, int], stream: bool) -> None:
    with running_gateway(tmp_path) as running:
        client = running.client()
        asked: dict[str, Any] = {"model": BASE, "input": "x", "extra_headers": key("k"), "stream": stream}
        running.script(reply="one two three four five", **script)
        if stream:
            assert respond(client, **asked)[1][-1] == "response.failed"
        else:
            with pytest.raises(openai.InternalServerError):
                client.responses.create(**asked)
        running.script(reply="one")
        assert ask_patiently(client, asked).output_text == "one"


def ask_patiently(client: openai.OpenAI, asked: dict[str, Any]) -> Any:
    """Return a response once the gateway has noticed what became of the first request with its key."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return respond(client, **asked)[0]
        except (openai.ConflictError, openai.InternalServerError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_key_whose_client_left_is_free_again(gateway: RunningGateway) -> None:
    client, rows = gateway.client(), count_responses(gateway)
    gateway.script(reply="word " * 400, token_delay_s=0.5)
    asked: dict[str, Any] = {"model": BASE, "input": "x", "extra_headers": key("left"), "stream": True}
    with client.responses.create(**asked) as stream:
        next(iter(stream))
        with pytest.raises(openai.ConflictError):
            client.responses.create(**asked)
    gateway.script(reply="one")
    assert ask_patiently(client, asked).output_text == "one"
    assert count_responses(gateway) == rows + 1


@pytest.mark.parametrize("model", [BASE, "desk"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_answer_makes_no_second_response(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, model: str, stream: bool,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.02)
    port = int(gateway.url.rpartition(":")[2])
    with cutting_proxy(port) as proxy, openai.OpenAI(
        base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="none", timeout=PATIENCE_S
    ) as client:  # fmt: skip
        for turn in range(CUTS):
            rows, cut = count_responses(gateway), proxy.was_cut
            proxy.cuts = 1 + turn % 2  # the client tries three times
            made, _ = respond(client, model=model, input=f"{QUESTION} {turn}", stream=stream)
            assert proxy.was_cut == cut + 1 + turn % 2
            assert count_responses(gateway) == rows + 1
            assert client.responses.retrieve(made.id).output_text == made.output_text
    record_property("responses_with_a_cut_answer", CUTS)


def test_the_same_twice_on_purpose_makes_two(gateway: RunningGateway) -> None:
    client = gateway.client()
    first, second = (client.responses.create(model=BASE, input="same").id for _ in range(2))
    retried = client.responses.create(model=BASE, input="same", extra_headers={"x-stainless-retry-count": "1"}).id
    assert len({first, second, retried}) == 3
    keyed = [gateway.client(create_key(gateway.database, owner)[1]) for owner in ("one", "two")]
    made = {client.responses.create(model=BASE, input="x", extra_headers=key("own")).id for client in keyed}
    assert len(made) == 2
    headers = {"authorization": f"Bearer {keyed[0].api_key}", **key("k" * 256)}
    answer = gateway.request("POST", "/v1/responses", json={"model": BASE, "input": "x"}, headers=headers)
    assert answer.status_code == 400
