"""Starts whole gateways in processes of their own, again and again without their imports, so that tests can kill them.

A server process imports what a gateway imports and then forks: each child is a gateway with the fake vLLM and the
scripted trainer, and dies by a real signal.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import openai

REPO = Path(__file__).resolve().parents[2]
URL_FILE = "gateway.url"


class GatewayProcess:
    """A gateway in a process of its own."""

    def __init__(self, server: "WarmGateway", pid: int, folder: Path) -> None:
        self.server, self.pid, self.folder = server, pid, folder
        self.url = ""

    def wait_until_ready(self) -> bool:
        """Wait until it listens; return False where it ended before."""
        deadline = time.monotonic() + 60
        while not (self.folder / URL_FILE).exists():
            if self.server.ask({"poll": self.pid}) is not None:
                return False
            assert time.monotonic() < deadline, (self.folder / "gateway.log").read_text()
            time.sleep(0.02)
        self.url = (self.folder / URL_FILE).read_text()
        return True

    def client(self) -> openai.OpenAI:
        """Return the stock client without retries, for a with block."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def is_listening(self) -> bool:
        """Tell whether it answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return the exit code once it has ended, negative for a signal."""
        code = self.server.ask({"wait": self.pid})
        assert code is not None
        return code

    def stop(self) -> None:
        """End it in good order."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait()


class WarmGateway:
    """The server, and how to speak to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.warm_gateway"], cwd=REPO, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server; gateways that still run are killed first."""
        self.process.communicate(timeout=60)

    def ask(self, request: dict[str, Any]) -> int | None:
        """Send one request and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer

    def start(self, folder: Path, **environment: str) -> GatewayProcess:
        """Start a gateway on a data directory."""
        (folder / URL_FILE).unlink(missing_ok=True)
        pid = self.ask({"folder": str(folder), "environment": environment})
        assert pid is not None
        return GatewayProcess(self, pid, folder)


def run_gateway(folder: Path) -> None:
    """Run a gateway until SIGTERM."""
    from tests.fakes.gateway import running_gateway

    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with running_gateway(folder, trains=True) as running:
        partial = folder / f"{URL_FILE}.tmp"
        partial.write_text(running.url)
        partial.rename(folder / URL_FILE)
        while not told:
            time.sleep(0.05)


def serve() -> None:
    """Import everything, then fork a gateway for each request on stdin."""
    import tests.fakes.gateway  # noqa: F401

    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "folder" in request:
            answer: int | None = fork(Path(request["folder"]), request["environment"])
            running.add(answer or 0)
        else:
            pid, options = (request["wait"], 0) if "wait" in request else (request["poll"], os.WNOHANG)
            ended, status = os.waitpid(pid, options) if pid in running else (pid, 0)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running -= {ended}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def fork(folder: Path, environment: dict[str, str]) -> int:
    """Fork a child that becomes a gateway; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / "gateway.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        run_gateway(folder)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
