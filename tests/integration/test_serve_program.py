"""serve/run.py itself before two fake vLLM servers of others: HTTPS, a key, failover, and nothing else that listens."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from core.layout import DataDir
from serve.engine import make_scratch
from tests.fakes.certificate import make_certificate
from tests.fakes.fleet import KEY, OthersServer

REPO = Path(__file__).resolve().parent.parent.parent
MODEL = "smollm2-135m-instruct"
START_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Program:
    """A running serve/run.py.

    Attributes:
        process: It.
        url: Its base URL.
        trust: What its certificate is checked with.
        others: The servers behind it.
        log: What it has said.
    """

    process: subprocess.Popen[bytes]
    url: str
    trust: ssl.SSLContext
    others: list[OthersServer]
    log: Path

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask with the key."""
        return httpx.get(self.url + path, verify=self.trust, headers={"authorization": "Bearer secret"}, **options)


@pytest.fixture(scope="module")
def program(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One program for all tests here; the last one stops it."""
    root, scratch = tmp_path_factory.mktemp("program"), make_scratch()
    DataDir(root).models.symlink_to(demo_models / "models")
    cert, key = make_certificate(root)
    others = [OthersServer(f"unix:{scratch}/{name}.sock", ["--served-model-name", MODEL]) for name in ("a", "b")]
    for other in others:
        other.start()
    urls = ",".join(f"'{other.address}'" for other in others)
    log = root / "serve.log"
    command = [
        sys.executable, "serve/run.py", f"paths.data_dir={root}", "hardware=cpu", "model=smollm2_135m", "adapters=[]",
        "gateway.port=0", f"gateway.tls_cert={cert}", f"gateway.tls_key={key}", f"engine.urls=[{urls}]",
        "engine.health_interval_s=0.2",
    ]  # fmt: skip
    environment = {**os.environ, "LOAM_API_KEY": "secret", "LOAM_ENGINE_KEY": KEY}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=REPO, stdout=out, stderr=out, env=environment)
    try:
        yield Program(process, wait_for_url(process, log), ssl.create_default_context(cafile=cert), others, log)
    finally:
        process.kill()
        process.wait()
        for other in others:
            other.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the URL that the program says it can be asked at."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("ready "):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.1)
    pytest.fail(f"the program did not become ready: {log.read_text()}")


def test_it_speaks_https_with_its_certificate_and_nothing_else(program: Program) -> None:
    assert program.url.startswith("https://127.0.0.1:")
    assert program.get("/health").json() == {"status": "ok", "engine": "ready"}
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{program.url}/health")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{program.url.replace('https', 'http')}/health")


def test_the_stock_client_streams_over_it(program: Program) -> None:
    with openai.OpenAI(
        base_url=f"{program.url}/v1", api_key="secret", http_client=openai.DefaultHttpxClient(verify=program.trust)
    ) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "one two"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two"


def test_only_the_gateways_port_listens(program: Program) -> None:
    family = [psutil.Process(program.process.pid), *psutil.Process(program.process.pid).children(recursive=True)]
    listening = [
        connection.laddr
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type.name == "SOCK_DGRAM"
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", int(program.url.rpartition(":")[2]))]


def test_one_of_its_servers_may_die(program: Program) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": "Bearer secret"}
    with httpx.Client(verify=program.trust, headers=headers, timeout=60) as client:
        program.others[0].kill()
        for _ in range(10):
            assert client.post(f"{program.url}/v1/chat/completions", json=body).status_code == 200
        ready = f'loam_engine_ready{{server="{program.others[0].address}"}}'
        wait_for_line(client, program.url, f"{ready} 0.0")
        program.others[0].start()
        wait_for_line(client, program.url, f"{ready} 1.0")
        for other in program.others:
            other.kill()
        answer = client.post(f"{program.url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        program.others[1].start()
        deadline = time.monotonic() + 60
        while client.get(f"{program.url}/health").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wait_for_line(client: httpx.Client, url: str, line: str) -> None:
    """Wait until the metrics hold a line."""
    deadline = time.monotonic() + 60
    while line not in client.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline, f"the metrics never said {line}"
        time.sleep(0.1)


def test_its_log_is_json_with_the_requests_id(program: Program) -> None:
    answer = program.get("/v1/models")
    deadline = time.monotonic() + 60  # it is written after the answer's last byte
    while f'"{answer.headers["x-request-id"]}"' not in program.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines = [json.loads(line) for line in program.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
    assert (line["level"], line["method"], line["path"], line["status"]) == ("info", "GET", "/v1/models", 200)
    assert line["owner"] == "local"


def test_a_signal_ends_it(program: Program) -> None:
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(120) == 0
    assert "stopped" in program.log.read_text()
    assert all(other.process is None or other.process.poll() is None for other in program.others)
