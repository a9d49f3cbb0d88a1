"""Whatever is sent, the gateway answers below 500, in the shape that its description says. Promise H4.

`LOAM_TEST_FULL=1` sends 10,000 generated requests, otherwise a few hundred; the seed is printed and replays.
"""

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import RunningGateway, searching_gateway
from tests.fakes.hostile_requests import HOSTILE_REQUESTS, HostileRequest

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
CASES = 10_000 if IS_FULL else 200
EXAMPLES = 50 if IS_FULL else 10
"""Generated for each operation in each turn, besides those that walk along the borders of its description."""
PHASES = "examples,coverage,fuzzing,stateful" if IS_FULL else "examples,fuzzing"
KEY = "an-operators-key"
"""Without one, the first key that a request makes would shut all later ones out."""
SLOW_PATH = "/v1/loam/doctor"
"""Each answer takes seconds: it reads every byte of the data directory or computes on the machine. So it is asked by
itself, a few times, in the full test; what it refuses stands among the requests that are written by hand."""
HOOKS = Path(__file__).resolve().parents[1] / "fakes" / "known_models.py"
CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here, with the real stores behind it, and a key that no request can revoke."""
    with searching_gateway(tmp_path_factory.mktemp("fuzz"), api_key=KEY) as running:
        yield running


def test_there_are_enough() -> None:
    assert len(HOSTILE_REQUESTS) >= 60
    assert len({request.name for request in HOSTILE_REQUESTS}) == len(HOSTILE_REQUESTS)


@pytest.mark.parametrize("hostile", HOSTILE_REQUESTS, ids=lambda hostile: hostile.name)
def test_a_hostile_request_is_answered_below_500(
    gateway: RunningGateway, hostile: HostileRequest, record_property: Callable[[str, object], None]
) -> None:
    status, body = send_raw(gateway.url, hostile)
    assert 200 <= status < 500
    if status >= 400 and hostile.method != "HEAD":
        error: dict[str, Any] = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert b"Traceback" not in body
    assert gateway.request("GET", "/health").status_code == 200
    record_property("requests_written_by_hand", 1)


def send_raw(url: str, hostile: HostileRequest) -> tuple[int, bytes]:
    """Send a request as it is written, which no client would do, and return status and body of the answer."""
    host, port = url.removeprefix("http://").split(":")
    own = {"host": host, "content-length": str(len(hostile.body)), "authorization": f"Bearer {KEY}"}
    headers = {**own, **hostile.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(
                f"{hostile.method} {hostile.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + hostile.body
            )
        except (BrokenPipeError, ConnectionResetError):
            received = b""  # answered before all was sent
        while not is_whole(received, hostile.method):
            piece = connection.recv(65_536)
            if not piece:
                break
            received += piece
    answer_head, _, body = received.partition(b"\r\n\r\n")
    return int(answer_head.split(b" ", 2)[1]), body


def is_whole(received: bytes, method: str) -> bool:
    """Tell whether an answer is there to its end."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator or method == "HEAD":
        return bool(separator)
    length = re.search(rb"content-length: (\d+)", head)
    return len(body) >= int(length.group(1)) if length else body.endswith(b"0\r\n\r\n")


@pytest.mark.skipif(not IS_FULL, reason="wanted LOAM_TEST_FULL=1: each answer of the doctor takes seconds")
def test_the_slow_route_is_asked_by_itself(
    gateway: RunningGateway, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    count = fuzz(gateway, tmp_path, read_seed(), "--max-examples=5", f"--include-path={SLOW_PATH}")
    assert count >= 5
    record_property("requests_to_the_doctor", count)


@pytest.mark.timeout(1400)
def test_generated_requests_are_answered_as_described(
    gateway: RunningGateway, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = read_seed()
    generated, phases = 0, PHASES
    while generated < CASES:  # a seed replays: it grows by one from turn to turn
        count = fuzz(
            gateway, tmp_path, seed, f"--phases={phases}", f"--max-examples={EXAMPLES}", f"--exclude-path={SLOW_PATH}"
        )
        assert count
        generated, seed, phases = generated + count, seed + 1, "fuzzing,stateful"
    answered = [request for request in gateway.state()["requests"] if "messages" in request]
    assert len(answered) >= EXAMPLES // 10, "the requests that are made up hardly come further than the checks"
    record_property("requests_generated", generated)
    record_property("chats_that_came_through_to_vllm", len(answered))


def read_seed() -> int:
    """Return the seed of made-up requests, and print it."""
    seed = int(os.environ.get("LOAM_TEST_SEED", random.SystemRandom().randrange(2**31) if IS_FULL else 20261126))
    sys.stdout.write(f"seed {seed}\n")
    return seed


def fuzz(gateway: RunningGateway, folder: Path, seed: int, *options: str) -> int:
    """Let Schemathesis make requests up, and see that each is answered as the description says; returns how many."""
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{gateway.url}/openapi.json", f"--seed={seed}", "--mode=all",
        f"--checks={CHECKS}", "--request-timeout=120", f"--header=Authorization: Bearer {KEY}", *options,
        "--suppress-health-check=all", "--generation-database=none", "--report=json",
        f"--report-json-path={folder / 'report.json'}", "--no-color",
    ]  # fmt: skip
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Test cases:\s+([\d,]+) generated", run.stdout)
    assert found, run.stdout + run.stderr
    sys.stdout.write(run.stdout[-1500:])
    assert run.returncode == 0, run.stdout[-10_000:]
    assert "Authentication failed" not in run.stdout, "requests that are shut out prove nothing"
    assert gateway.request("GET", "/health").status_code == 200
    return int(found.group(1).replace(",", ""))
