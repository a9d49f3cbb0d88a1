"""The gateway's edges: slow and greedy connections, foreign sites, quotas, metrics, certificates."""

import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.keys import create_key
from serve.quotas import Quotas
from tests.fakes.engine import BASE
from tests.fakes.gateway import ALIAS, PATIENCE_S, RunningGateway, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here that need nothing special of it."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), body_timeout_s=0.5) as running:
        yield running


def connect(gateway: RunningGateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(PATIENCE_S)
    return connection


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any], bytes]:
    """Return status, error and head of an answer on a connection that is closed after it."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"x-request-id: req_" in head
    return int(head.split()[1]), error, head


# --- slow and greedy


def test_a_head_that_never_ends_is_431(gateway: RunningGateway) -> None:
    begun = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: "
    with connect(gateway) as connection:
        connection.sendall(begun.ljust(65_536, b"x"))
        connection.sendall(b"x")  # the last one: what came after the end of the connection would reset it
        status, error, _ = read_answer(connection)
    assert status == 431
    assert "65536 bytes" in error["message"]


def test_a_large_head_that_comes_at_once_is_431(gateway: RunningGateway) -> None:
    answer = gateway.request("GET", "/health", headers={f"x-{number}": "y" * 8000 for number in range(9)})
    assert answer.status_code == 431
    assert answer.json()["error"]["code"] == "headers_too_large"


def test_a_head_that_comes_slowly_is_408(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.connections.HEAD_TIMEOUT_S", 0.4)
    with connect(gateway) as connection:
        connection.sendall(b"GET /health HT")
        assert read_answer(connection)[0] == 408
    with connect(gateway) as connection:
        assert connection.recv(1) == b""  # nothing was asked: closed without a word


def test_a_body_that_stops_coming_is_408(gateway: RunningGateway) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with connect(gateway) as connection:
        connection.sendall(head + b'content-length: 500\r\n\r\n{"model":')
        status, error, answer_head = read_answer(connection)
    assert (status, error["code"]) == (408, "request_timeout")
    assert b"connection: close" in answer_head


def test_what_is_no_http_is_400_in_openais_shape(gateway: RunningGateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert read_answer(connection)[0] == 400


def test_an_upgrade_to_a_websocket_is_not_had(gateway: RunningGateway) -> None:
    headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    assert gateway.request("GET", "/v1/realtime", headers=headers).status_code == 404


def test_many_slow_connections_keep_nobody_else_waiting(gateway: RunningGateway) -> None:
    slow = [connect(gateway) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"[: 5 + number % 50])
        for _ in range(20):
            assert gateway.request("GET", "/health").status_code == 200
        assert gateway.chat().status_code == 200
    finally:
        for connection in slow:
            connection.close()


# --- foreign sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8000"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "192.168.1.5"}, 403),
        ({"host": "127.0.0.1", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1", "origin": "null"}, 403),
        ({"host": "127.0.0.1", "origin": "http://localhost.evil.example"}, 403),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_without_a_key_no_page_of_another_site_can_ask(
    gateway: RunningGateway, headers: dict[str, str], status: int
) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/files")):
        answer = gateway.request(method, path, headers=headers)
        expected = status if method == "GET" or status == 403 else 400
        assert answer.status_code == expected
        if status == 403:
            assert answer.json()["error"]["code"] == "foreign_site"


def test_with_a_key_every_name_will_do(tmp_path: Path) -> None:
    with running_gateway(tmp_path, api_key="secret") as keyed:
        headers = {"authorization": "Bearer secret", "host": "loam.example", "origin": "https://chat.example"}
        assert keyed.request("GET", "/v1/models", headers=headers).status_code == 200
        assert keyed.request("GET", "/v1/models", headers={"host": "loam.example"}).status_code == 401


# --- quotas


def test_a_key_that_has_spent_its_requests_is_429_with_openais_headers(tmp_path: Path) -> None:
    with running_gateway(tmp_path, quotas=Quotas(requests_per_minute=3)) as limited:
        _, token = create_key(limited.database, "sales")
        _, other = create_key(limited.database, "support")
        message = {"role": "user", "content": "hello"}

        def ask(key: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            body = {"model": BASE, "messages": [message]}
            return limited.request("POST", "/v1/chat/completions", json=body, headers=headers)

        answers = [ask(token) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert left == ["2", "1", "0", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        assert re.fullmatch(r"[\d.]+s", answers[0].headers["x-ratelimit-reset-requests"])
        error = answers[3].json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        assert ask(other).status_code == 200
        assert limited.client(token).models.list().data  # looking costs nothing


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [BASE, ALIAS])
def test_a_key_that_has_spent_its_tokens_is_429(tmp_path: Path, stream: bool, model: str) -> None:
    with running_gateway(tmp_path, quotas=Quotas(tokens_per_minute=50)) as limited:
        limited.script(reply="word " * 60)
        answers = [limited.chat(model=model, stream=stream)]
        limited.wait_for_metrics('loam_tokens_total{kind="completion"')
        answers.append(limited.chat(model=model, stream=stream))
        assert [answer.status_code for answer in answers] == [200, 429]
        assert answers[0].headers["x-ratelimit-remaining-tokens"] == "50"
        error = answers[1].json()["error"]
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        assert "word" in answers[0].text
        assert "usage" not in answers[0].text or not stream  # told to the gateway, not to who did not ask


def test_usage_is_told_in_a_stream_to_who_asked(gateway: RunningGateway) -> None:
    gateway.script(reply="one two")
    told = gateway.chat(stream=True, stream_options={"include_usage": True}).text
    hidden = gateway.chat(stream=True).text
    assert '"total_tokens": 4' in told
    assert "usage" not in hidden
    assert hidden.endswith("data: [DONE]\n\n")


# --- metrics


def read_samples(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_tell_of_requests_tokens_and_vllm(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as counted:
        counted.script(reply="one two three")
        assert counted.chat().status_code == 200
        assert counted.chat(stream=True).status_code == 200
        assert counted.chat(n=0).status_code == 400
        counted.request("GET", "/some/strange/path")
        counted.wait_for_metrics(
            f'loam_tokens_total{{kind="completion",model="{BASE}"}} 6.0',
            'loam_requests_total{method="any",route="none",status="404"} 1.0',
            "loam_requests_running 1.0",  # this one
        )
        answer = counted.request("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        samples = read_samples(answer.text)
        route = {"method": "POST", "route": "/v1/chat/completions"}
        assert samples["loam_requests_total" + json.dumps({**route, "status": "200"}, sort_keys=True)] == 2
        assert samples["loam_requests_total" + json.dumps({**route, "status": "400"}, sort_keys=True)] == 1
        assert samples['loam_requests_total{"method": "any", "route": "none", "status": "404"}'] == 1
        assert samples[f'loam_tokens_total{{"kind": "completion", "model": "{BASE}"}}'] == 6
        assert samples[f'loam_first_token_seconds_count{{"model": "{BASE}"}}'] == 1
        server = counted.engine.server.address
        assert samples[f'loam_engine_ready{{"server": "{server}"}}'] == 1
        own = {"engine": "0", "model_name": BASE, "server": server}
        assert samples["vllm:prompt_tokens_total" + json.dumps(own, sort_keys=True)] == 7
        assert "strange" not in answer.text


def test_metrics_are_for_administrators(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as keyed:
        _, plain = create_key(keyed.database, "sales")
        _, admin = create_key(keyed.database, "ops", is_admin=True)
        for key, status in ((plain, 403), (admin, 200)):
            answer = keyed.request("GET", "/metrics", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status
        assert keyed.request("GET", "/metrics").status_code == 401


def wait_for_line(caplog: pytest.LogCaptureFixture, beginning: str) -> None:
    """Wait for a line of the log: a request's own is written after its last byte has gone."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(record.getMessage().startswith(beginning) for record in caplog.records):
        assert time.monotonic() < deadline, f"no line of the log begins with {beginning!r}"
        time.sleep(0.01)


def test_every_line_that_a_request_logs_has_its_id(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    from core.logs import JsonFormatter

    lines: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        """Formats within the request, as a server's handler does."""

        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    keeper = Keeper()
    logging.getLogger("serve").addHandler(keeper)
    try:
        gateway.script(error_after=1)
        with caplog.at_level(logging.INFO, logger="serve"):
            answer = gateway.chat(stream=True)
            wait_for_line(caplog, "POST /v1/chat/completions 200")
        gateway.script()
    finally:
        logging.getLogger("serve").removeHandler(keeper)
    messages = {line["message"] for line in lines if line.get("request_id") == answer.headers["x-request-id"]}
    assert "engine failed in a stream" in messages
    assert any(message.startswith("POST /v1/chat/completions 200") for message in messages)


# --- uploads


def test_a_large_upload_is_streamed_to_disk(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    size = (512 if os.environ.get("LOAM_TEST_FULL") else 48) * 2**20
    piece = os.urandom(2**20)
    process, peak = psutil.Process(), 0

    def form() -> Iterator[bytes]:
        nonlocal peak
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        for _ in range(size // len(piece)):
            yield piece
            peak = max(peak, process.memory_info().rss)
        yield b"\r\n--b--\r\n"

    with running_gateway(tmp_path, max_file_bytes=size) as roomy:
        before = process.memory_info().rss
        headers = {"content-type": "multipart/form-data; boundary=b"}
        start = time.monotonic()
        answer = roomy.request("POST", "/v1/files", content=form(), headers=headers)
        record_property("kept_on_disk_s", round(time.monotonic() - start, 1))
        record_property("mib_uploaded", size // 2**20)
        record_property("mib_of_memory_for_it", round((peak - before) / 2**20))
        assert answer.status_code == 200
        assert answer.json()["bytes"] == size
        assert peak - before < 24 * 2**20
        kept = tmp_path / "files" / answer.json()["id"]
        with kept.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(piece * (size // len(piece))).digest()
        head = f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {size + 2**20}\r\n"
        with connect(roomy) as connection:
            connection.sendall(head.encode() + b"connection: close\r\n\r\n")
            status, error, _ = read_answer(connection)
        assert (status, error["code"]) == (413, "body_too_large")
        assert [path.name for path in (tmp_path / "files").iterdir()] == [kept.name]
