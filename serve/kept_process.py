"""A program under its keeper (keeper.py): a process group that goes with the gateway, however the gateway goes.

Used for vLLM and for trainers. Does not know what runs.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from serve import keeper

KILL_PATIENCE_S = 5.0


@dataclass(slots=True)
class KeptProcess:
    """A running program.

    Attributes:
        keeper: The process that holds the program and dies with us.
        group: The program's process group, all that it started included; also the program's process id.
    """

    keeper: asyncio.subprocess.Process
    group: int

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, 128 + the signal's number where one ended it; None while it runs."""
        return self.keeper.returncode

    async def wait(self, patience_s: float) -> bool:
        """Wait for the program's end for some seconds; return whether it has ended."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.keeper.wait(), patience_s)
        return self.keeper.returncode is not None

    async def end(self, patience_s: float) -> None:
        """Ask the program to end, wait, then kill whatever is left of it and of its children.

        Args:
            patience_s: Between asking and killing; 0 kills at once.
        """
        if patience_s > 0 and self.exit_code is None:
            with suppress(ProcessLookupError):
                self.keeper.terminate()
            await self.wait(patience_s)
        if (
            self.exit_code is None or self.exit_code < 0
        ):  # else the keeper has done it, and the number may be another's now
            keeper.kill_group(self.group)
        if not await self.wait(KILL_PATIENCE_S):
            os.kill(self.keeper.pid, signal.SIGKILL)
            await self.keeper.wait()


def _open_log(path: Path) -> BufferedWriter:
    return path.open("ab")


async def start_kept(
    command: Sequence[str], environment: Mapping[str, str], scratch: Path, log_path: Path
) -> KeptProcess | None:
    """Start a program under a keeper.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        scratch: Its private folder; removed with it when the gateway is gone.
        log_path: Takes what it prints, appended.

    Returns:
        The program; None where it could not be started at all.
    """
    with _open_log(log_path) as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            keeper.__file__,
            str(scratch),
            *command,
            env=dict(environment),
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
        return None
    return KeptProcess(process, int(first_line))
