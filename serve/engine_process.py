"""The engine's process: launched under its keeper with a socket and a fresh key, ended with everything it started.

Does not know when it is healthy or what it serves; serve/engine.py does.
"""

import asyncio
import os
import secrets
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from core.errors import EngineUnavailable
from serve import keeper
from serve.engine_command import EngineCommand

KILL_PATIENCE_S = 5.0


@dataclass(slots=True)
class EngineProcess:
    """A running engine.

    Attributes:
        keeper: The process that holds the engine and dies with us.
        group: The engine's process group, all of its workers included.
        key: What requests to it must carry.
    """

    keeper: asyncio.subprocess.Process
    group: int
    key: str

    @property
    def exit_code(self) -> int | None:
        """The engine's exit code, 128 + the signal's number where one ended it; None while it runs."""
        return self.keeper.returncode

    async def wait(self, patience_s: float) -> bool:
        """Wait for the engine's end for some seconds; return whether it has ended."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.keeper.wait(), patience_s)
        return self.keeper.returncode is not None

    async def end(self, patience_s: float) -> None:
        """Ask the engine to end, wait, then kill whatever is left of it and of its children.

        Args:
            patience_s: Between asking and killing; 0 kills at once.
        """
        if patience_s > 0 and self.exit_code is None:
            self.keeper.terminate()
            await self.wait(patience_s)
        keeper.kill_group(self.group)
        if not await self.wait(KILL_PATIENCE_S):
            os.kill(self.keeper.pid, signal.SIGKILL)
            await self.keeper.wait()


def open_log(socket: Path, log_path: Path) -> BufferedWriter:
    """Remove an earlier engine's socket and open the log for appending."""
    socket.unlink(missing_ok=True)
    return log_path.open("ab")


async def launch(command: EngineCommand, socket: Path, log_path: Path) -> EngineProcess:
    """Start an engine.

    Args:
        command: What to run.
        socket: Where it shall listen, in a folder of its own; a file left by an earlier engine is removed.
        log_path: Takes what it prints, appended.

    Raises:
        EngineUnavailable: It could not be started at all.
    """
    key = secrets.token_urlsafe(32)
    with open_log(socket, log_path) as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            keeper.__file__,
            str(socket.parent),
            *command.arguments,
            "--uds",
            str(socket),
            env={**command.environment, "VLLM_API_KEY": key},
            stdin=asyncio.subprocess.PIPE,  # its end tells the keeper that the gateway is gone
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C at the terminal reaches the gateway alone
        )
    try:
        first_line = await process.stdout.readline() if process.stdout else b""
    except asyncio.CancelledError:
        if process.stdin:
            process.stdin.close()  # the keeper takes whatever it has started along
        raise
    if not first_line.strip().isdigit():
        await process.wait()
        raise EngineUnavailable(f"wanted to start {command.arguments[0]}, found that it cannot run. See {log_path}.")
    return EngineProcess(process, int(first_line), key)
