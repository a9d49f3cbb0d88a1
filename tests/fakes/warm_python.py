"""Runs the tests' own programs in forked children of a process that has imported them, so that many kills are cheap.

A server process imports the programs and then forks: a child runs the `main()` of one with a command line, environment
and standard output of its own, and dies by a real signal. What a fork inherits is modules, nothing of a run.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

REPO = Path(__file__).resolve().parents[2]
MESSAGE_BYTES = 1 << 16


class Program:
    """A program under the server.

    Attributes:
        pid: Its process.
        output: What it writes, line by line.
    """

    def __init__(self, server: "WarmPython", pid: int, output: int) -> None:
        """Take the end of a pipe that the program writes into."""
        self.pid = pid
        self.output = os.fdopen(output, encoding="utf-8")
        self._server = server
        self._code: int | None = None

    def __enter__(self) -> Self:
        """Return the program itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it where it still runs."""
        if kind is not None:
            self.kill()
        self.wait()

    def kill(self) -> None:
        """Send SIGKILL; nothing happens to one that has ended."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)  # nobody has waited for it, so that the number is still its own

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            self._code = self._server.ask({"poll": self.pid})
        return self._code

    def wait(self) -> int:
        """Return the exit code, negative for a signal, once it has ended."""
        if self._code is None:
            self._code = self._server.ask({"wait": self.pid})
        assert self._code is not None
        self.output.close()
        return self._code


class WarmPython:
    """The server, and how to speak to it; one test at a time."""

    def __init__(self, *modules: str) -> None:
        """Start the server.

        Args:
            modules: The programs, each a module with a `main()` that reads sys.argv.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-m", "tests.fakes.warm_python", str(descriptor), *modules]
            self._process = subprocess.Popen(command, cwd=REPO, pass_fds=[descriptor])

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server; programs that still run are killed first."""
        self._socket.close()
        self._process.wait(60)

    def ask(self, request: dict[str, Any], *descriptors: int) -> int | None:
        """Send one request and return its answer."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        said = self._socket.recv(MESSAGE_BYTES)
        assert said, "the server has ended"
        answer: int | None = json.loads(said)
        return answer

    def start(self, module: str, *arguments: str, **environment: str) -> Program:
        """Start a program.

        Args:
            module: One of the server's.
            arguments: Its command line.
            environment: Variables beside the server's own.
        """
        output, theirs = os.pipe()
        try:
            pid = self.ask({"module": module, "arguments": arguments, "environment": environment}, theirs)
        finally:
            os.close(theirs)
        assert pid is not None
        return Program(self, pid, output)


def serve(control: socket.socket, names: list[str]) -> None:
    """Import the programs, then fork one for each request."""
    modules = {name: importlib.import_module(name) for name in names}
    running: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
        if not message:
            break
        request = json.loads(message)
        if "module" in request:
            answer: int | None = fork(modules[request["module"]], request, descriptors[0], control)
            os.close(descriptors[0])
            running.add(answer or 0)
        else:
            pid, options = (request["wait"], 0) if "wait" in request else (request["poll"], os.WNOHANG)
            ended, status = os.waitpid(pid, options)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running -= {ended}
        control.send(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def fork(module: ModuleType, request: dict[str, Any], output: int, control: socket.socket) -> int:
    """Fork a child that runs a program; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        control.close()
        os.dup2(output, 1)
        os.close(output)
        os.environ.update(request["environment"])
        sys.argv = [module.__name__, *request["arguments"]]
        module.main()
        code = 0
    except Exception:  # noqa: BLE001 - the entry of a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
