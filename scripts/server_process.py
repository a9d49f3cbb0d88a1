"""serve/run.py as a child process, for commands that measure or show a served system. Speaks to it by HTTP only."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType

import httpx

from core.errors import ConfigError, EngineUnavailable
from core.next_command import quote_value

PROJECT = Path(__file__).resolve().parent.parent
SERVE_TIMEOUT_S = 900


@contextmanager
def run_server(options: Sequence[str], log: Path, timeout_s: float = SERVE_TIMEOUT_S) -> Iterator[str]:
    """Run the server for the time of the block; from the main thread only.

    Args:
        options: Overrides of serve/run.py; `gateway.port` is added.
        log: Where its JSON log lines go; what it tells people goes to standard error.
        timeout_s: Longest wait until it is ready.

    Yields:
        The endpoint's base URL, without /v1.

    Raises:
        EngineUnavailable: It ended or was not ready in time.
    """
    port = find_free_port()
    command = ["serve/run.py", *options, f"gateway.port={port}"]
    process = subprocess.Popen([sys.executable, *command], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    Thread(target=_show_words, args=(process, log), daemon=True).start()
    before = signal.signal(signal.SIGTERM, _end)  # so that the server does not outlive the command
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, timeout_s)
        yield url
    finally:
        signal.signal(signal.SIGTERM, before)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end(number: int, _frame: FrameType | None) -> None:
    """End as after an error, so that what is open is closed."""
    sys.exit(128 + number)


def _show_words(process: subprocess.Popen[str], log: Path) -> None:
    """Copy what the server tells people to the terminal, and its JSON log lines to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        for line in process.stderr or ():
            is_log_line = line.startswith("{")
            print(line, end="", file=file if is_log_line else sys.stderr, flush=True)


def _wait_until_ready(process: subprocess.Popen[str], url: str, timeout_s: float) -> None:
    """Wait for the gateway and the engine behind it; the server prints its own progress."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineUnavailable(
                f"serve/run.py ended with exit code {process.returncode}; its message stands above."
            )
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise EngineUnavailable(f"wanted a ready server within {timeout_s:g} s, found none. See data/logs/vllm.log.")


def find_free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quote_override(text: str) -> str:
    """Return a text as a quoted value of a Hydra override, whatever quotes, braces or line ends it holds.

    Raises:
        ConfigError: It holds `${`, which the configuration would take for a reference.
    """
    if "${" in text:
        raise ConfigError(
            "instructions: wanted plain text, found ${, which configuration takes for a reference. Remove it."
        )
    return quote_value(text)
