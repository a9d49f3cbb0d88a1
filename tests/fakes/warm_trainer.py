"""Starts `train/run.py` again and again without its fifteen seconds of imports, so that a test can afford many kills.

A server process imports what training imports and then forks: the child is train/run.py itself, with its own command
line, environment and output, and dies by a real signal. What a fork inherits is modules and the seed of Python's
hashes, nothing of a run; what is compared with should come from a process of its own.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPO = Path(__file__).resolve().parents[2]
HEAVY_MODULES = (
    "train.run", "train.trainer", "train.model", "train.report", "bitsandbytes",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip


class Training:
    """One run of train/run.py under the server."""

    def __init__(self, server: "WarmTrainer", pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self._code: int | None = None

    def send(self, number: int) -> None:
        """Send a signal; nothing happens to one that was seen to have ended."""
        if self._code is None:
            os.kill(self.pid, number)  # nobody has waited for it, so that the number is still its own

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            self._code = self.server.ask({"poll": self.pid})
        return self._code

    def wait(self) -> int:
        """Return the exit code, negative for a signal, once it has ended."""
        if self._code is None:
            self._code = self.server.ask({"wait": self.pid})
        assert self._code is not None
        return self._code


class WarmTrainer:
    """The server, and how to speak to it."""

    def __init__(self, folder: Path) -> None:
        """Start the server; the runs' output goes to files in a folder."""
        self.folder, self.started = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.warm_trainer"],
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server; a run that is still under way is killed first."""
        self.process.communicate(timeout=60)

    def ask(self, request: dict[str, Any]) -> int | None:
        """Send one request and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self, arguments: list[str], *, environment: dict[str, str] | None = None, file_limit: int | None = None
    ) -> Training:
        """Start train/run.py.

        Args:
            arguments: Its command line.
            environment: Variables beside the server's own.
            file_limit: Bytes after which a file takes no more, or None.
        """
        self.started += 1
        log = self.folder / f"run{self.started:02d}.log"
        request = {"arguments": arguments, "environment": environment or {}, "limit": file_limit, "log": str(log)}
        pid = self.ask(request)
        assert pid is not None
        return Training(self, pid, log)


def serve() -> None:
    """Import everything, then fork a run for each request on stdin."""
    for name in HEAVY_MODULES:
        importlib.import_module(name)
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "arguments" in request:
            started = fork(request)
            running.add(started)
            answer: int | None = started
        else:
            pid, options = (request["wait"], 0) if "wait" in request else (request["poll"], os.WNOHANG)
            ended, status = os.waitpid(pid, options)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running -= {ended}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def fork(request: dict[str, Any]) -> int:
    """Fork a child that becomes train/run.py; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(request["environment"])
        if request["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        sys.argv = [str(REPO / "train" / "run.py"), *request["arguments"]]
        from core.config import run_app
        from train.run import main

        run_app("train", main)
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
