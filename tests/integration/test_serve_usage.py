"""What answers take in tokens, counted for their key's quota and for the metrics, also where they are broken off."""

import re
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from serve.answering import AssistantConfig
from serve.keys import create_key
from serve.quotas import Quotas
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, RunningGateway, running_gateway
from tests.fakes.searcher import make_passage

WARRANTY = "The Brook 40 pump has a warranty of 26 months."
QUESTION = "How long is the warranty of the Brook 40 pump?"
DESK = "desk"
LIMIT = 40


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with an assistant and a limit of tokens."""
    desk = {DESK: AssistantConfig(model=BASE, stores=["acme"], min_score=0.2)}
    passages = [make_passage("c1", WARRANTY, file="warranty.md")]
    folder = tmp_path_factory.mktemp("usage")
    with running_gateway(folder, passages, desk, quotas=Quotas(tokens_per_minute=LIMIT)) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client with a key that has spent nothing."""
    return gateway.client(create_key(gateway.database, "local")[1])


@pytest.fixture
def admin(gateway: RunningGateway) -> str:
    """An operator's key."""
    return create_key(gateway.database, "operator", is_admin=True)[1]


def read_tokens(gateway: RunningGateway, admin: str, model: str) -> tuple[int, int]:
    """Return how many tokens of prompts and answers a model has been counted."""
    page = gateway.request("GET", "/metrics", headers={"authorization": f"Bearer {admin}"}).text

    def read(kind: str) -> int:
        found = re.search(rf'^loam_tokens_total\{{kind="{kind}",model="{model}"\}} ([\d.]+)$', page, re.MULTILINE)
        return int(float(found[1])) if found else 0

    return read("prompt"), read("completion")


def wait_for_tokens(gateway: RunningGateway, admin: str, model: str, before: tuple[int, int]) -> tuple[int, int]:
    """Return what has been counted since; a stream is counted when its last byte has gone."""
    deadline = time.monotonic() + 60
    while (now := read_tokens(gateway, admin, model)) == before:
        assert time.monotonic() < deadline, "nothing was counted"
        time.sleep(0.02)
    return now[0] - before[0], now[1] - before[1]


def respond(client: openai.OpenAI, model: str, *, stream: bool) -> Any:
    """Return a response to the question."""
    answer: Any = client.responses.create(model=model, input=QUESTION, stream=stream)
    return list(answer)[-1].response if stream else answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [BASE, DESK])
def test_a_responses_tokens_count_for_the_key_and_the_metrics(
    gateway: RunningGateway, client: openai.OpenAI, admin: str, model: str, stream: bool
) -> None:
    gateway.script(reply=" ".join(["word"] * LIMIT))
    before = read_tokens(gateway, admin, model)
    usage = respond(client, model, stream=stream).usage
    assert usage.output_tokens == LIMIT
    assert wait_for_tokens(gateway, admin, model, before) == (usage.input_tokens, usage.output_tokens)
    with pytest.raises(openai.RateLimitError) as caught:
        respond(client, model, stream=stream)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["x-ratelimit-remaining-tokens"] == "0"


def test_an_answer_without_the_model_costs_nothing(gateway: RunningGateway, client: openai.OpenAI, admin: str) -> None:
    before = read_tokens(gateway, admin, DESK)
    for stream in (False, True):
        answer: Any = client.responses.create(model=DESK, input="qwertz yxcv", stream=stream)
        answer = list(answer)[-1].response if stream else answer
        assert (answer.usage.total_tokens, answer.status) == (0, "completed")
    assert read_tokens(gateway, admin, DESK) == before


def open_stream(client: openai.OpenAI, route: str, model: str) -> Any:
    """Begin an answer on one of the routes that stream."""
    if route == "responses":
        return client.responses.create(model=model, input=QUESTION, stream=True)
    if route == "chat":
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], stream=True
        )
    return client.completions.create(model=model, prompt=QUESTION, stream=True, max_tokens=400)


@pytest.mark.parametrize(
    ("route", "model", "name"),
    [("responses", BASE, BASE), ("responses", DESK, DESK), ("chat", DESK, DESK), ("chat", ALIAS, ADAPTER),
     ("completions", BASE, BASE)],
)  # fmt: skip
def test_what_was_said_counts_although_the_client_leaves(
    gateway: RunningGateway, client: openai.OpenAI, admin: str, route: str, model: str, name: str
) -> None:
    gateway.script(reply=f"{WARRANTY}\n" * 40, token_delay_s=0.01)
    before = read_tokens(gateway, admin, name)
    with open_stream(client, route, model) as stream:
        for number, _ in enumerate(stream):
            if number == 20:
                break
    _, said = wait_for_tokens(gateway, admin, name, before)
    assert 0 < said < 300
