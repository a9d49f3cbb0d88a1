"""Processes that work at the same time in a step of scripts/bench_gpu.py: started, seen at work, called off, read.

A worker does its unit of work again and again until its standard input ends. It says «working» after the first, and
its figures at the end, as a line of JSON. Does not know what is worked on.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench_gpu_steps import Unavailable, Wrong, describe_missing, is_ours

ROOT = Path(__file__).resolve().parent.parent
WORKING = "working"
MISSING = "missing"
END_S = 120
"""Longest wait for a worker's last unit and its figures."""
DYING_S = 5
"""Longest wait for the end of one whose output has ended."""


@dataclass(slots=True)
class Worker:
    """A process that works.

    Attributes:
        name: What it is called in what goes wrong.
        process: Reads the end of its work from standard input, writes to standard output.
        log: Takes what it says beside.
    """

    name: str
    process: asyncio.subprocess.Process
    log: Path

    async def wait_until_working(self, patience_s: float) -> None:
        """Wait for its first unit of work.

        Raises:
            Unavailable: It lacks a package.
            Wrong: It ended, or takes too long.
        """
        try:
            line = await asyncio.wait_for(self._read_line(), patience_s)
        except TimeoutError as error:
            raise Wrong(f"{self.name}: wanted it at work within {patience_s:g} s, found it still starting") from error
        if line != WORKING:
            await self._refuse(line)

    async def finish(self) -> dict[str, Any]:
        """Call it off and return its figures.

        Raises:
            Wrong: It ended badly, or does not end.
        """
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            line = await asyncio.wait_for(self._read_line(), END_S)
            code = await asyncio.wait_for(self.process.wait(), END_S)
        except TimeoutError as error:
            raise Wrong(f"{self.name}: wanted it to end when it was called off, found it at work") from error
        if code or not line.startswith("{"):
            await self._refuse(line)
        return dict(json.loads(line))

    async def end(self) -> None:
        """Kill it where it still runs."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def _read_line(self) -> str:
        reader = self.process.stdout
        return (await reader.readline()).decode().strip() if reader is not None else ""

    async def _refuse(self, line: str) -> None:
        """Raise what a line that was not wanted means."""
        if line.startswith("{") and (missing := json.loads(line).get(MISSING)):
            raise Unavailable(missing)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), DYING_S)
        await self.end()
        words = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = words[-1][:300] if words else "it said nothing"
        raise Wrong(f"{self.name}: ended with {self.process.returncode}: {last}")


@asynccontextmanager
async def running_workers(
    commands: Mapping[str, Sequence[str]], folder: Path, patience_s: float, when_working: Callable[[str], None]
) -> AsyncIterator[list[Worker]]:
    """Start workers one after the other, each when the last one is at work; whatever happens, none outlives the block.

    Args:
        commands: Of each, by its name.
        folder: Takes their logs.
        patience_s: Longest wait until one is at work.
        when_working: Told the name of each that is at work, before the next one starts.

    Raises:
        Unavailable: One lacks a package.
        Wrong: One ended, or was not at work in time.
    """
    workers: list[Worker] = []
    try:
        for name, command in commands.items():
            log = folder / f"{name}.log"
            with log.open("wb") as words:
                process = await asyncio.create_subprocess_exec(
                    *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=words
                )
            workers.append(Worker(name, process, log))
            await workers[-1].wait_until_working(patience_s)
            when_working(name)
        yield workers
    finally:
        for worker in workers:
            await worker.end()


def work_until_called_off(prepare: Callable[[], tuple[Callable[[], None], Callable[[], dict[str, Any]]]]) -> None:
    """Be a worker: prepare, work until standard input ends, print the figures.

    Args:
        prepare: Returns the unit of work, and what tells the figures afterwards.
    """
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        work, tell = prepare()
        units = 0
        while not units or not stop.is_set():
            work()
            units += 1
            if units == 1:
                print(WORKING, flush=True)
    except Unavailable as error:
        print(json.dumps({MISSING: str(error)}), flush=True)
        return
    except ImportError as error:
        if is_ours(error):
            raise
        print(json.dumps({MISSING: describe_missing(error)}), flush=True)
        return
    print(json.dumps({"units": units, **tell()}), flush=True)
