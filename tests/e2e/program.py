"""serve/run.py as the e2e tests run it: a process of its own, with what it says kept beside its data."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

REPO = Path(__file__).resolve().parent.parent.parent
MODEL = "smollm2-135m-instruct"
START_TIMEOUT_S = 300


@dataclass(slots=True)
class Program:
    """A running serve/run.py."""

    process: subprocess.Popen[str]
    url: str
    data: Path
    stock_client: openai.OpenAI

    def client(self) -> openai.OpenAI:
        """Return the stock client without retries."""
        return self.stock_client

    def family(self) -> list[psutil.Process]:
        """Return every process below this one."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running_program(data: Path, *options: str) -> Iterator[Program]:
    """Run serve/run.py on a free port for the time of the block."""
    port = find_port()
    process = run_program(data, f"gateway.port={port}", *options)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, data)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            yield Program(process, url, data, client)
    finally:
        process.kill()
        process.wait()


def run_program(data: Path, *options: str) -> subprocess.Popen[str]:
    """Start serve/run.py; its words go to a file beside its data."""
    with (data / "serve.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "serve/run.py", f"paths.data_dir={data}", "hardware=cpu", *options],
            cwd=REPO, stdout=log, stderr=log, text=True,
        )  # fmt: skip


def read_words(data: Path) -> str:
    """Return what the program has said."""
    return (data / "serve.log").read_text()


def wait_until_ready(process: subprocess.Popen[str], url: str, data: Path) -> None:
    """Wait for /health."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, read_words(data)
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
        time.sleep(0.1)
    pytest.fail(f"not ready within {START_TIMEOUT_S} s: {read_words(data)}")


def find_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
