"""Fake vLLM servers that nobody supervises, as others would run them for `engine.urls`."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.engine import make_scratch
from serve.fleet import Fleet
from serve.model_server import Adapter, ModelServer
from tests.fakes.engine import BASE, REPO, quick_config

KEY = "their-key"


@dataclass(slots=True)
class OthersServer:
    """One fake server's process.

    Attributes:
        address: As engine.urls holds it.
        options: Further arguments of it.
        process: It, while it runs.
    """

    address: str
    options: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it on its address."""
        path = self.address.removeprefix("unix:")
        where = ["--uds", path] if path != self.address else ["--port", self.address.rpartition(":")[2]]
        Path(path).unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fakes.vllm", "--served-model-name", BASE, *where, *self.options]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO), "VLLM_API_KEY": KEY})

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class RunningFleet:
    """A fleet before fake servers.

    Attributes:
        fleet: The fleet.
        others: The servers' processes, in the order of `fleet.servers`.
    """

    fleet: Fleet
    others: list[OthersServer]

    async def script(self, number: int, **script: Any) -> None:
        """Tell one fake how to answer from now on."""
        (await self.fleet.servers[number].client.post("/fake/script", json=script)).raise_for_status()

    async def state(self, number: int) -> dict[str, Any]:
        """Return what one fake has seen."""
        state: dict[str, Any] = (await self.fleet.servers[number].client.get("/fake/state")).json()
        return state

    async def wait_until(self, number: int, *, is_ready: bool) -> ModelServer:
        """Wait until a server is in, or out."""
        server = self.fleet.servers[number]
        async with asyncio.timeout(60):
            while server.is_ready is not is_ready:  # noqa: ASYNC110  (nothing tells of it but the flag)
                await asyncio.sleep(0.02)
        return server


@asynccontextmanager
async def running_fleet(
    count: int = 2, adapters: list[Adapter] | None = None, addresses: list[str] | None = None, **changes: Any
) -> AsyncIterator[RunningFleet]:
    """Run a fleet before some fake servers for the time of the block; all of them are in when it begins."""
    scratch = make_scratch()
    urls = addresses or [f"unix:{scratch}/{number}.sock" for number in range(count)]
    others = [OthersServer(url) for url in urls]
    fleet = Fleet(quick_config(urls=urls, **changes), BASE, adapters or [], KEY)
    running = RunningFleet(fleet, others)
    try:
        for other in others:
            other.start()
        await fleet.start(lambda _seconds, _line: None)
        for number in range(len(others)):
            await running.wait_until(number, is_ready=True)
        yield running
    finally:
        await fleet.stop()
        for other in others:
            other.kill()
        shutil.rmtree(scratch, ignore_errors=True)
