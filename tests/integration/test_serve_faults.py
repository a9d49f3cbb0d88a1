"""When vLLM dies, hangs or is asked too much, and when clients leave: promises S1 to S5, with few rounds here.

`LOAM_TEST_FULL=1` runs as many as the promises say.
"""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve.program import settle_memory
from tests.fakes.crowd import Crowd, running_crowd
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, PATIENCE_S, RunningGateway, running_gateway

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
KILLS = 20 if IS_FULL else 2
DEATHS = 50 if IS_FULL else 4
DISCONNECTS = 100 if IS_FULL else 8
OVERLOAD_S = 60.0 if IS_FULL else 3.0
OVERLOAD_CLIENTS = 200 if IS_FULL else 60
MESSAGES = [{"role": "user", "content": "hello there"}]
ROUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "hello there"}),
)
"""What is relayed byte for byte, with what each route asks."""


def wait_until(gateway: RunningGateway, status: int, patience_s: float = PATIENCE_S) -> float:
    """Wait until /health has a status; return the seconds that it took."""
    start = time.monotonic()
    while gateway.request("GET", "/health").status_code != status:
        assert time.monotonic() - start < patience_s, f"the gateway's health did not become {status}"
        time.sleep(0.02)
    return time.monotonic() - start


def wait_for_restart(gateway: RunningGateway, count: int) -> float:
    """Wait until vLLM has been started anew so often, and is ready; return the seconds from the one to the other."""
    deadline = time.monotonic() + PATIENCE_S
    while gateway.engine.restarts < count:
        assert time.monotonic() < deadline, "nobody noticed that vLLM is dead"
        time.sleep(0.01)
    return wait_until(gateway, 200)


@contextmanager
def under_load(gateway: RunningGateway, clients: int, pause_s: float = 0.02) -> Iterator[Crowd]:
    """Have clients ask both routes without end, every second time for a stream, for the time of the block."""
    requests = [
        (path, {"model": model, **asked, "stream": stream})
        for path, asked in ROUTES
        for model in (BASE, ALIAS)
        for stream in (False, True)
    ]
    with running_crowd(gateway.url, clients, pause_s, requests) as crowd:
        yield crowd


def test_s1_after_kill_9_under_load_it_is_503_and_then_works_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    slowest_s = 0.0
    with running_gateway(tmp_path) as gateway, under_load(gateway, 20) as load:
        for number in range(1, KILLS + 1):
            time.sleep(0.2)
            os.kill(gateway.state()["pid"], signal.SIGKILL)
            slowest_s = max(slowest_s, wait_for_restart(gateway, number))
            assert list(gateway.state()["adapters"]) == [ADAPTER]
            assert gateway.chat(model=ALIAS).status_code == 200
        assert gateway.engine.restarts == KILLS
    assert {status for status, *_ in load.answers} == {200, 503}
    for status, headers, text, *_ in load.answers:
        if status == 503:
            assert int(headers["retry-after"]) >= 1
            assert json.loads(text)["error"]["code"] == "engine_unavailable"
        elif headers["content-type"].startswith("text/event-stream"):
            assert text.endswith("data: [DONE]\n\n") != ('"code": "engine_unavailable"' in text)
    refused_s = [answer.seconds for answer in load.answers if answer.status == 503]
    record_property("kills", KILLS)
    record_property("answers", len(load.answers))
    record_property("refused_with_503", len(refused_s))
    record_property("slowest_503_s", round(max(refused_s), 3))
    record_property("ready_again_s", round(slowest_s, 2))


def test_s2_a_death_in_a_stream_never_looks_like_an_end(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("LOAM_TEST_SEED", "7"))
    chance, slowest_s = random.Random(seed), 0.0
    with running_gateway(tmp_path) as gateway:
        for death in range(1, DEATHS + 1):
            after = chance.randrange(0, 20)
            gateway.script(reply=" ".join(["word"] * 20), die_after=after)
            start = time.monotonic()
            text = gateway.chat(stream=True).text
            slowest_s = max(slowest_s, time.monotonic() - start)
            assert "[DONE]" not in text, f"seed {seed}"
            assert '"finish_reason": "stop"' not in text, f"seed {seed}"
            last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
            assert last["error"]["type"] == "server_error", f"seed {seed}"
            wait_for_restart(gateway, death)
    record_property("deaths_in_a_stream", DEATHS)
    record_property("slowest_end_s", round(slowest_s, 2))


def test_s3_one_that_hangs_is_504_then_not_ready_then_replaced(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    changes = {"canary_interval_s": 0.3, "canary_timeout_s": 1.5}
    with running_gateway(tmp_path, engine_changes=changes) as gateway:
        before = gateway.state()["pid"]
        with gateway.deadline(1.0), gateway.without_restarts():
            gateway.script(is_hung=True)
            start = time.monotonic()
            answer = gateway.chat(stream=True)
            waited_s = time.monotonic() - start
            assert waited_s >= 0.9
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
            assert "within 1 s" in answer.json()["error"]["message"]
            unready_s = wait_until(gateway, 503)
            assert gateway.chat().status_code == 503
        wait_until(gateway, 200)
        record_property("deadlines_of_1_second_kept", 1)
        record_property("slowest_504_s", round(waited_s, 2))
        record_property("not_ready_s", round(unready_s, 2))
        assert gateway.state()["pid"] != before
        assert gateway.chat(model=ALIAS).status_code == 200


def test_a_busy_engine_is_not_a_hung_one(tmp_path: Path) -> None:
    with running_gateway(tmp_path, engine_changes={"canary_interval_s": 0.5, "canary_timeout_s": 0.5}) as gateway:
        gateway.script(reply="word " * 60, token_delay_s=0.05)
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json={**body(stream=True)}) as answer:
            time.sleep(0.2)
            gateway.script(is_hung=True)  # canaries would fail now, and the stream goes on
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert gateway.engine.restarts == 0


def body(**changes: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": MESSAGES, **changes}


@pytest.mark.parametrize("stream", [False, True])
def test_s4_clients_that_go_away_free_vllm(
    tmp_path: Path, stream: bool, record_property: Callable[[str, object], None]
) -> None:
    with running_gateway(tmp_path) as gateway:
        gateway.script(reply="word " * 2000, first_delay_s=0.0 if stream else 200.0, token_delay_s=0.1)
        host, port = gateway.url.removeprefix("http://").split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(DISCONNECTS)]
        for number, client in enumerate(clients):
            path, asked = ROUTES[number % 2]
            content = json.dumps({"model": BASE, **asked, "max_tokens": 2000, "stream": stream}).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        deadline = time.monotonic() + PATIENCE_S
        while gateway.state()["running"] < DISCONNECTS:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert gateway.engine.server.in_flight == DISCONNECTS
        start = time.monotonic()
        for client in clients:
            client.close()
        while gateway.state()["running"]:
            assert time.monotonic() - start < PATIENCE_S, "requests still run although their clients have gone"
            time.sleep(0.02)
        record_property("clients_that_left", DISCONNECTS)
        record_property("freed_s", round(time.monotonic() - start, 2))
        assert gateway.state()["aborted"] == DISCONNECTS
        assert gateway.engine.server.in_flight == 0


def test_s5_too_many_requests_are_refused_and_nothing_else_suffers(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with running_gateway(tmp_path, engine_changes={"max_in_flight": 8}) as gateway:
        gateway.script(first_delay_s=0.1)
        settle_memory()  # as the program does once it has started
        process = psutil.Process()
        rss = process.memory_info().rss
        with (
            under_load(gateway, OVERLOAD_CLIENTS) as load,
            running_crowd(gateway.url, 1, 0.05, [("/health", None)]) as watcher,
        ):
            deadline = time.monotonic() + OVERLOAD_S
            while time.monotonic() < deadline:
                assert gateway.engine.server.in_flight <= 8
                time.sleep(0.05)
            grown_mib = (process.memory_info().rss - rss) / 2**20  # what the crowds have seen comes here afterwards
        assert gateway.engine.server.in_flight == 0
    assert {answer.status for answer in watcher.answers} == {200}
    healths = sorted(answer.seconds for answer in watcher.answers)
    statuses = [answer.status for answer in load.answers]
    assert set(statuses) == {200, 503}
    refused = [(answer.headers, answer.text) for answer in load.answers if answer.status == 503]
    assert all(headers["retry-after"] == "1" for headers, _ in refused)
    assert {json.loads(text)["error"]["code"] for _, text in refused} == {"overloaded"}
    assert statuses.count(200) > 8
    assert grown_mib < 200
    record_property("answers", len(statuses))
    record_property("refused_with_503", statuses.count(503))
    record_property("ninety_ninth_percentile_of_health_s", round(healths[int(len(healths) * 0.99)], 3))
    record_property("grown_mib", round(grown_mib))
