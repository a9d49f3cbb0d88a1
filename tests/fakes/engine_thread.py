"""Serve's engine on a thread of its own, so that plain tests can use it: the fake vLLM or the real one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from core.errors import LoamError
from serve.engine import Engine
from serve.engine_command import EngineCommand, EngineConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineThread:
    """An engine that runs.

    Attributes:
        engine: The engine.
        loop: The loop that it runs on.
    """

    engine: Engine
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T], patience_s: float = 120) -> T:
        """Run a coroutine on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patience_s)

    def request(self, method: str, path: str, *, keyed: bool = True, **options: Any) -> httpx.Response:
        """Send a request to the engine's server."""
        headers = self.engine.headers if keyed else {}
        return self.run(self.engine.client.request(method, path, headers=headers, timeout=120, **options))


@contextmanager
def engine_thread(
    config: EngineConfig, make_command: Callable[[Engine], EngineCommand], log_path: Path
) -> Iterator[EngineThread]:
    """Run an engine for the time of the block.

    Args:
        config: Its settings.
        make_command: Makes its command, given the engine for its folder.
        log_path: Takes what it prints.
    """
    ready = threading.Event()
    made: list[EngineThread] = []
    stop: list[asyncio.Event] = []
    faults: list[LoamError] = []

    async def run() -> None:
        engine = Engine(config, [], log_path)
        stop.append(asyncio.Event())
        try:
            await engine.start(make_command(engine), lambda _seconds, _line: None)
            made.append(EngineThread(engine, asyncio.get_running_loop()))
            ready.set()
            await stop[0].wait()
        finally:
            await engine.stop()

    def main() -> None:
        try:
            asyncio.run(run())
        except LoamError as error:
            faults.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    ready.wait(config.start_timeout_s + 30)
    try:
        if faults:
            raise faults[0]
        yield made[0]
    finally:
        if made:
            made[0].loop.call_soon_threadsafe(stop[0].set)
        thread.join(60)
