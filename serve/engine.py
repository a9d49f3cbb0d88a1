"""The engine: one vLLM server as a child process, started, watched, restarted and stopped.

Owns the private folder with the socket, the adapters that must be loaded before the engine counts as ready, and the
decision that the server is done for. Knows nothing of the gateway's routes and nothing of what the command starts, so
that the tests can let it run their own fake vLLM. What is said to the server stands in model_server.py.
"""

import asyncio
import dataclasses
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from core.errors import EngineError, EngineUnavailable
from serve.engine_command import EngineCommand, EngineConfig
from serve.engine_process import EngineProcess, launch
from serve.model_server import Adapter, EngineState, Health, ModelServer, choose_least_loaded

logger = logging.getLogger(__name__)

LOG_LINES_SHOWN = 12
LOG_TAIL_BYTES = 8192
POLL_INTERVAL_S = 0.25
SILENCES_ALLOWED = 3
MAX_TEMPORARY_PATH = 50
"""Bytes that leave room for our folder's name and for the names of vLLM's own sockets, 36 bytes each."""

Progress = Callable[[float, str], None]
"""Told now and then while the engine starts: seconds since the start, last line of its log."""


def make_scratch() -> Path:
    """Make a private folder (0700) whose path is short enough for sockets: they may have 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="loam-", dir=usual if len(usual) <= MAX_TEMPORARY_PATH else "/tmp"))  # noqa: S108


def report_crash(watcher: "asyncio.Task[None]") -> None:
    """Log what ended the watching over the engine, if it was not the engine's own stop."""
    if not watcher.cancelled() and (error := watcher.exception()):
        logger.critical("nobody watches over the engine any more: restart the gateway", exc_info=error)


class Engine:
    """A supervised vLLM server on a unix socket in a private folder."""

    def __init__(self, config: EngineConfig, adapters: list[Adapter], log_path: Path) -> None:
        """Prepare an engine; nothing runs until `start`.

        Args:
            config: Timeouts and back-off.
            adapters: Loaded after every start, before the engine is ready.
            log_path: Takes what the engine prints; begun anew by `start`, continued by restarts.
        """
        self.config = config
        self.state = EngineState.STOPPED
        self.restarts = 0
        self.scratch = make_scratch()
        self.server = ModelServer(f"unix:{self.socket}")
        self.servers = [self.server]
        self.refused: dict[str, str] = {}
        self._adapters = list(adapters)
        self._changes = asyncio.Lock()
        self._command: EngineCommand | None = None
        self._pause_left_s: Callable[[], float] = lambda: 0.0
        self._log_path = log_path
        self._process: EngineProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._last_ready_s = 30.0
        self._started_at = 0.0

    @property
    def socket(self) -> Path:
        """The unix socket that the engine listens on."""
        return self.scratch / "vllm.sock"

    @property
    def client(self) -> httpx.AsyncClient:
        """What speaks to the engine's own routes."""
        return self.server.client

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request to the engine must carry."""
        return self.server.headers

    @property
    def max_model_len(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.server.max_model_len

    def check_ready(self) -> None:
        """Let a request through only while the engine is ready.

        Raises:
            EngineUnavailable: It is not; with the seconds after which it should be.
        """
        if self.state is EngineState.READY and self.server.is_ready:
            return
        found = EngineState.RESTARTING if self.state is EngineState.READY else self.state  # not noticed yet
        retry_after_s = self.expected_wait_s()
        why = " while a fine-tuning job has the card" if self.state is EngineState.PAUSED else ""
        raise EngineUnavailable(
            f"The model server is {found.value}{why}. Try again in about {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )

    def choose(self) -> ModelServer:
        """Return the server that a request goes to: there is one.

        Raises:
            EngineUnavailable: It is not ready.
            Overloaded: It has all the requests that it may be given.
        """
        self.check_ready()
        return choose_least_loaded(self.servers, self.config.max_in_flight)

    def suspect(self) -> None:
        """Look at the engine's health at once: a request has just failed in it."""
        self.server.suspect()

    def expected_wait_s(self) -> int:
        """Return the whole seconds after which the engine should be ready, judging by its last start; at least 1."""
        if self.state is EngineState.READY:
            return 1
        if self.state is EngineState.PAUSED:
            return max(1, math.ceil(self._pause_left_s() + self._last_ready_s))
        return max(1, math.ceil(self._last_ready_s - (time.monotonic() - self._started_at)))

    async def start(self, command: EngineCommand, progress: Progress) -> None:
        """Start the engine, wait until it is ready with all adapters, and watch over it from then on.

        Args:
            command: What to run; `--uds` and a fresh key are added at each start.
            progress: Told how it goes.

        Raises:
            EngineUnavailable: It died or took too long; the message ends with its last log lines.
            EngineError: It refused an adapter.
        """
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path.write_bytes(b"")
        self.state = EngineState.STARTING
        self._command = command
        try:
            await self._launch(command, progress)
        except BaseException:
            await self.stop()
            raise
        self._guard(command)

    async def pause(self, left_s: Callable[[], float], drain: Callable[[], Awaitable[None]]) -> None:
        """Stop the process, so that something else can have the card; requests are told when to come again.

        Args:
            left_s: Returns how many seconds that will last, as far as can be told.
            drain: Waits for the requests that run; new ones are refused from the beginning.
        """
        async with self._changes:
            self._pause_left_s = left_s
            self.state = EngineState.PAUSED
            await drain()
            await self._end(EngineState.PAUSED)

    def resume(self) -> None:
        """Start the process again after a pause, with all adapters; where it does not come up, it is tried again."""
        if self.state is EngineState.PAUSED and self._command is not None:
            self._started_at = time.monotonic()
            self.state = EngineState.RESTARTING
            self._guard(self._command)

    async def stop(self) -> None:
        """Stop the engine and everything it started, and remove its folder. May be called twice."""
        await self._end(EngineState.STOPPED)
        await self.server.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    async def _end(self, state: EngineState) -> None:
        """End the watching and the process."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self.state = state
        self.server.is_ready = False
        if self._process is not None:
            await self._process.end(self.config.stop_timeout_s)

    def _guard(self, command: EngineCommand) -> None:
        """Watch over the engine from now on."""
        self._watcher = asyncio.create_task(self._watch(command), name="engine-watcher")
        self._watcher.add_done_callback(report_crash)

    def expect(self, adapter: Adapter) -> None:
        """Load an adapter at each start from the first on."""
        self._adapters.append(adapter)

    async def wait_until_ready(self) -> None:
        """Wait until requests can be answered, however long that takes."""
        while self.state is not EngineState.READY:  # noqa: ASYNC110  (waited for seldom, and changed in many places)
            await asyncio.sleep(POLL_INTERVAL_S)

    async def add_adapter(self, adapter: Adapter) -> None:
        """Load one more adapter into the running engine, and from now on at each start.

        Raises:
            EngineError: The engine refused it.
        """
        async with self._changes:
            while True:
                await self.wait_until_ready()
                try:
                    await self.server.load(adapter)
                    break
                except EngineUnavailable:  # it went meanwhile, and comes back without this one
                    await asyncio.sleep(POLL_INTERVAL_S)
                    await self.server.unload(adapter.name)
            self._adapters.append(dataclasses.replace(adapter, is_needed=False))

    async def remove_adapter(self, name: str) -> None:
        """Drop an adapter from the running engine and from its starts; one that is not there is what was wanted."""
        async with self._changes:
            self._adapters = [adapter for adapter in self._adapters if adapter.name != name]
            self.refused.pop(name, None)
            if self.state in (EngineState.STARTING, EngineState.RESTARTING):
                await self.wait_until_ready()  # it may be loading this one
            await self.server.unload(name)

    async def check_difference(self, name: str) -> None:
        """See that an adapter changes what is answered: vLLM can take one and not apply it.

        Raises:
            EngineError: It answers as the base model, to the last digit.
        """
        while True:
            await self.wait_until_ready()
            try:
                await self.server.check_difference(name)
                return
            except EngineUnavailable:
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _launch(self, command: EngineCommand, progress: Progress) -> None:
        """Start the process, wait for its health, see it generate, load the adapters."""
        self._started_at = time.monotonic()
        self._process = await launch(command, self.socket, self._log_path)
        self.server.key = self._process.key
        await self._wait_until_healthy(self._process, progress)
        await self.server.read_names()
        if not await self.server.generate_token(self.config.start_timeout_s):
            raise EngineUnavailable(
                f"wanted vLLM to generate a token, found that it does not. Its last lines ({self._log_path}):\n"
                f"{self._read_log_tail()}"
            )
        for adapter in list(self._adapters):
            await self.server.load_at_start(adapter, self.refused)
        self._last_ready_s = time.monotonic() - self._started_at
        self.server.is_ready = True
        self.state = EngineState.READY
        logger.info("engine ready", extra={"seconds": round(self._last_ready_s, 1), "adapters": len(self._adapters)})

    async def _wait_until_healthy(self, process: EngineProcess, progress: Progress) -> None:
        while True:
            elapsed = time.monotonic() - self._started_at
            if process.exit_code is not None:
                raise EngineUnavailable(
                    f"wanted vLLM to start, found that it ended with code {process.exit_code} after "
                    f"{elapsed:.0f} s. Its last lines ({self._log_path}):\n{self._read_log_tail()}"
                )
            if elapsed > self.config.start_timeout_s:
                raise EngineUnavailable(
                    f"wanted vLLM to be ready within {self.config.start_timeout_s:.0f} s (engine.start_timeout_s), "
                    f"found it still starting. Its last lines ({self._log_path}):\n{self._read_log_tail()}"
                )
            if await self.server.read_health() is Health.GOOD:
                return
            progress(elapsed, self._read_log_tail(1))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _watch(self, command: EngineCommand) -> None:
        """Restart the engine whenever it ends or stops answering, with a growing wait between failures."""
        failures = 0
        while True:
            if self.state is EngineState.READY and self._process is not None:
                reason = await self._wait_for_end(self._process)
                failures = 0
                logger.error("engine is gone", extra={"reason": reason, "last_lines": self._read_log_tail()})
            self.state = EngineState.RESTARTING
            self.server.is_ready = False
            self._started_at = time.monotonic()
            self.restarts += 1
            if self._process is not None:
                await self._process.end(0.0)
            if failures:
                await asyncio.sleep(min(2.0 ** (failures - 1), self.config.backoff_max_s))
            try:
                await self._launch(command, lambda _seconds, _line: None)
            except (EngineError, OSError) as error:
                failures += 1
                logger.error("engine did not come back", extra={"attempt": failures, "reason": str(error)})

    async def _wait_for_end(self, process: EngineProcess) -> str:
        """Return why the engine is done for: it has ended, is dead or silent, or generates nothing."""
        config = self.config
        ended: asyncio.Future[Any] = asyncio.ensure_future(process.keeper.wait())
        hung: asyncio.Future[Any] = asyncio.ensure_future(
            self.server.wait_until_hung(config.canary_interval_s, config.canary_timeout_s)
        )
        silences, counted_at = 0, time.monotonic()
        try:
            while silences < SILENCES_ALLOWED:
                await self.server.wait_until_due(config.health_interval_s, ended, hung)
                if ended.done():
                    return f"it ended with code {process.exit_code}"
                if hung.done():
                    return "it takes requests and generates nothing"
                health = await self.server.read_health()
                if health is Health.DEAD:
                    return "its core is dead"
                if health is Health.GOOD:
                    self.server.is_ready = True
                    silences = 0
                elif time.monotonic() - counted_at >= config.health_interval_s:  # many suspicions are one silence
                    silences, counted_at = silences + 1, time.monotonic()
            return "it does not answer"
        finally:
            for task in (ended, hung):
                task.cancel()
            await asyncio.gather(ended, hung, return_exceptions=True)

    def _read_log_tail(self, lines: int = LOG_LINES_SHOWN) -> str:
        """Return the last lines of the engine's log, at most 8 KiB; nothing where somebody has taken the log away."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
