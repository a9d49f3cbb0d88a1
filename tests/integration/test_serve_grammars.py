"""Hostile grammars hurt only themselves: each is refused in a moment, none reaches vLLM. Promise S8.

With LOAM_TEST_FULL=1 also what a normal client notices meanwhile: its chats alone and beside them, in turns. Both ask
from processes of their own, so that what they cost is not taken for the gateway's.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest

from serve.program import settle_memory
from tests.fakes.crowd import Answer, running_crowd
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.unit.serve.schemas.test_grammar import HOSTILE

COUNT = 200
REFUSED_WITHIN_S = 2.0
TURNS, TURN_S = 20, 0.5
"""Of the normal client: as long alone as beside hostile ones, turn about, so that both see the same machine."""
HOSTILE_PAUSE_S = 0.002
"""Between an answer to the hostile client and its next schema: some hundreds a second. One that never pauses takes half
of what there is, whatever it asks, as a second normal client would.
"""
SETTLED_S = 0.05
"""After which what was being refused when its sender was stopped has been."""
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for both tests."""
    with running_gateway(tmp_path_factory.mktemp("grammars")) as running:
        yield running


def list_requests() -> list[tuple[str, dict[str, Any]]]:
    """Return as many requests as the promise says, no two alike: each schema by each of the four ways there are."""
    return [make_request(number) for number in range(COUNT)]


def make_request(number: int) -> tuple[str, dict[str, Any]]:
    """Return one: its path and its body."""
    schema = {"title": f"number {number}", **HOSTILE[number % len(HOSTILE)][1]}
    function = {"name": "a", "parameters": schema}
    ways: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {**CHAT, "response_format": {"type": "json_schema",
                                                          "json_schema": {"name": "a", "schema": schema}}}),
        ("chat/completions", {**CHAT, "tools": [{"type": "function", "function": function}]}),
        ("responses", {"model": BASE, "input": "x",
                       "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}}),
        ("responses", {"model": BASE, "input": "x", "tools": [{"type": "function", **function}]}),
    ]  # fmt: skip
    path, body = ways[number // len(HOSTILE) % len(ways)]
    return f"/v1/{path}", body


def test_hostile_grammars_are_refused_and_not_passed_on(gateway: RunningGateway) -> None:
    requests = list_requests()
    assert len({json.dumps(request) for request in requests}) == COUNT
    before = len(gateway.state()["requests"])
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        for path, body in requests:
            answer = client.post(path, json=body)
            assert answer.status_code == 400, body
            assert answer.json()["error"]["code"] == "invalid_request"
    huge = {"model": BASE, "input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": {
        "enum": ["x" * 1000] * 1000}}}}  # fmt: skip
    assert gateway.post("/v1/responses", huge).status_code == 400
    assert len(gateway.state()["requests"]) == before
    assert gateway.chat().status_code == 200


def take_between(answers: Iterable[Answer], start: float, end: float) -> list[Answer]:
    """Return those that were asked and answered within a span of time."""
    return [answer for answer in answers if start <= answer.began and answer.began + answer.seconds <= end]


def find_p95(answers: list[Answer]) -> float:
    """Return the 95th percentile of their seconds."""
    return sorted(answer.seconds for answer in answers)[int(len(answers) * 0.95)]


def find_slowest(answers: list[Answer]) -> float:
    """Return the seconds of the slowest."""
    return max(answer.seconds for answer in answers)


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: it is about time")
def test_s8_a_normal_client_hardly_notices_them(
    gateway: RunningGateway, record_property: Callable[[str, object], None]
) -> None:
    settle_memory()  # as the program does once it has started
    alone: list[Answer] = []
    beside: list[Answer] = []
    hostile: list[Answer] = []
    turns: list[tuple[float, float, float]] = []
    with (
        running_crowd(gateway.url, 1, HOSTILE_PAUSE_S, list_requests()) as attacker,
        running_crowd(gateway.url, 1, 0.0, [("/v1/chat/completions", CHAT)]) as client,
    ):
        for _ in range(TURNS):
            attacker.pause()
            time.sleep(SETTLED_S)
            quiet = time.monotonic()
            time.sleep(TURN_S)
            loud = time.monotonic()
            attacker.go_on()
            time.sleep(TURN_S)
            turns.append((quiet, loud, time.monotonic()))
    assert {answer.status for answer in client.answers} == {200}
    assert {answer.status for answer in attacker.answers} == {400}
    for quiet, loud, end in turns:
        alone += take_between(client.answers, quiet, loud)
        beside += take_between(client.answers, loud, end)
        hostile += take_between(attacker.answers, loud, end)
    sys.stdout.write(f"p95: {find_p95(alone) * 1e3:.1f} ms alone ({len(alone)} chats), "
                     f"{find_p95(beside) * 1e3:.1f} ms beside ({len(beside)}) {len(hostile)} hostile grammars, "
                     f"the slowest of them {find_slowest(hostile) * 1e3:.0f} ms\n")  # fmt: skip
    assert len(hostile) >= COUNT
    assert find_slowest(hostile) <= REFUSED_WITHIN_S
    assert gateway.engine.restarts == 0
    record_property("hostile_grammars", len(hostile))
    record_property("slowest_refusal_s", round(find_slowest(hostile), 3))
    record_property("ninety_fifth_percentile_alone_s", round(find_p95(alone), 4))
    record_property("ninety_fifth_percentile_beside_them_s", round(find_p95(beside), 4))
    assert find_p95(beside) <= 2 * find_p95(alone)
