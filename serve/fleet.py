"""The fleet: vLLM servers that others run (`engine.urls`), taken in when they are good and out when they are not.

Every server must serve the base model's name and see the data directory at the same path; the fleet loads the adapters
into each, sends a request to the ready one with the fewest, and does not start or stop any. engine.py runs a server of
the gateway's own instead.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from core.errors import EngineError, EngineUnavailable
from serve.engine import SILENCES_ALLOWED, Progress, report_crash
from serve.engine_command import EngineConfig
from serve.model_server import Adapter, EngineState, Health, ModelServer, choose_least_loaded

logger = logging.getLogger(__name__)

RETRY_INTERVAL_S = 1.0
"""Between two attempts to take a server in."""


class Fleet:
    """Some vLLM servers behind one gateway."""

    def __init__(self, config: EngineConfig, model: str, adapters: list[Adapter], key: str | None = None) -> None:
        """Prepare; nothing is asked until `start`.

        Args:
            config: `urls` and the times.
            model: The base model's name, which every server must serve.
            adapters: What every server must hold before it is ready.
            key: What the servers' routes below /v1 want (LOAM_ENGINE_KEY); None for none.
        """
        self.config = config
        self.servers = [ModelServer(url, key) for url in config.urls]
        self.refused: dict[str, str] = {}
        self._model = model
        self._adapters = list(adapters)
        self._reasons = dict.fromkeys(config.urls, "not asked yet")
        self._watchers: list[asyncio.Task[None]] = []
        self._is_stopped = False

    @property
    def state(self) -> EngineState:
        """Ready while one server is."""
        if self._is_stopped:
            return EngineState.STOPPED
        return EngineState.READY if any(server.is_ready for server in self.servers) else EngineState.UNREACHABLE

    @property
    def max_model_len(self) -> int:
        """How many tokens prompt and answer may have together, on whichever server they come to."""
        return min((server.max_model_len for server in self.servers if server.max_model_len), default=0)

    def check_ready(self) -> None:
        """Let a request through only while a server is ready.

        Raises:
            EngineUnavailable: None is.
        """
        if self.state is not EngineState.READY:
            raise EngineUnavailable("No model server can be reached. Try again in a moment.", retry_after_s=1)

    def choose(self) -> ModelServer:
        """Return the ready server with the fewest requests.

        Raises:
            EngineUnavailable: None is ready.
            Overloaded: Those that are have all the requests that they may be given.
        """
        self.check_ready()
        return choose_least_loaded(self.servers, self.config.max_in_flight)

    def expected_wait_s(self) -> int:
        """Return 1: when somebody else's server comes back is not known here."""
        return 1

    async def start(self, progress: Progress) -> None:
        """Watch over the servers from now on; return as soon as one is ready.

        Args:
            progress: Told how it goes.

        Raises:
            EngineUnavailable: None was within `engine.start_timeout_s`; the message says of each why.
        """
        for server in self.servers:
            watcher = asyncio.create_task(self._watch(server), name=f"watcher of {server.address}")
            watcher.add_done_callback(report_crash)
            self._watchers.append(watcher)
        started_at = time.monotonic()
        while self.state is not EngineState.READY:
            elapsed = time.monotonic() - started_at
            if elapsed > self.config.start_timeout_s:
                reasons = "".join(f"\n  {url}: {reason}" for url, reason in self._reasons.items())
                await self.stop()
                raise EngineUnavailable(
                    f"wanted a server of engine.urls to be ready within {self.config.start_timeout_s:g} s "
                    f"(engine.start_timeout_s), found none:{reasons}"
                )
            progress(elapsed, "; ".join(self._reasons.values()))
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close every connection; the servers run on. May be called twice."""
        self._is_stopped = True
        for watcher in self._watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        self._watchers.clear()
        for server in self.servers:
            server.is_ready = False
            await server.close()

    def expect(self, adapter: Adapter) -> None:
        """Load an adapter into each server when it is taken in."""
        self._adapters.append(adapter)

    async def add_adapter(self, adapter: Adapter) -> None:
        """Load one more adapter into every ready server, and into the others when they come back.

        Raises:
            EngineError: A server refused it; it is dropped everywhere.
        """
        self._adapters.append(dataclasses.replace(adapter, is_needed=False))
        try:
            await self._tell(lambda server: server.load(adapter))
        except EngineError:
            await self.remove_adapter(adapter.name)
            raise

    async def remove_adapter(self, name: str) -> None:
        """Drop an adapter from every ready server, and from the others by never loading it again."""
        self._adapters = [adapter for adapter in self._adapters if adapter.name != name]
        self.refused.pop(name, None)
        await self._tell(lambda server: server.unload(name))

    async def check_difference(self, name: str) -> None:
        """See that an adapter changes what every ready server answers.

        Raises:
            EngineError: One answers as with the base model.
        """
        await self._tell(lambda server: server.check_difference(name))

    async def pause(self, left_s: Callable[[], float], drain: Callable[[], Awaitable[None]]) -> None:
        """Refuse: the servers' cards are not the gateway's to give away.

        Raises:
            EngineError: Always.
        """
        del left_s, drain
        raise EngineError("wanted jobs.gpu=share or dedicated with engine.urls, found stop: the servers are not ours.")

    def resume(self) -> None:
        """Do nothing: nothing was paused."""

    async def _tell(self, call: Callable[[ModelServer], Awaitable[None]]) -> None:
        """Do something with every ready server; one that goes away meanwhile does it when it comes back."""
        for server in [server for server in self.servers if server.is_ready]:
            try:
                await call(server)
            except EngineUnavailable:
                server.is_ready = False
                server.suspect()

    async def _watch(self, server: ModelServer) -> None:
        """Take a server in while it is good, for ever."""
        while True:
            try:
                await self._take_in(server)
            except EngineError as error:
                self._note(server, error.message)
                await asyncio.sleep(RETRY_INTERVAL_S)
                continue
            server.is_ready = True
            self._reasons[server.address] = "ready"
            logger.info("model server taken in", extra={"server": server.address})
            reason = await self._wait_until_bad(server)
            server.is_ready = False
            server.break_off()
            self._note(server, reason)

    def _note(self, server: ModelServer, reason: str) -> None:
        """Log why a server is out, once for each reason."""
        if self._reasons[server.address] != reason:
            self._reasons[server.address] = reason
            logger.error("model server is out", extra={"server": server.address, "reason": reason})

    async def _take_in(self, server: ModelServer) -> None:
        """See that a server is well, serves the base model, generates, and holds every adapter.

        Raises:
            EngineError: It does not.
        """
        health = await server.read_health()
        if health is not Health.GOOD:
            raise EngineUnavailable(f"it is {health.value}")
        names = await server.read_names()
        if server.model != self._model:
            raise EngineError(f"wanted it to serve {self._model} (--served-model-name), found {server.model}")
        if not await server.generate_token(self.config.canary_timeout_s):
            raise EngineUnavailable("it takes requests and generates nothing")
        while missing := [one for one in self._adapters if one.name not in names and one.name not in self.refused]:
            for adapter in missing:  # while these are loaded, one more may be added
                await server.load_at_start(adapter, self.refused)
                names.add(adapter.name)

    async def _wait_until_bad(self, server: ModelServer) -> str:
        """Return why a server can no longer be given requests."""
        config = self.config
        hung: asyncio.Future[Any] = asyncio.ensure_future(
            server.wait_until_hung(config.canary_interval_s, config.canary_timeout_s)
        )
        silences = 0
        try:
            while silences < SILENCES_ALLOWED:
                await server.wait_until_due(config.health_interval_s, hung)
                if hung.done():
                    return "it takes requests and generates nothing"
                health = await server.read_health()
                if health in (Health.DEAD, Health.GONE):
                    return f"it is {health.value}"
                silences = 0 if health is Health.GOOD else silences + 1
                if health is Health.GOOD:
                    try:
                        names = await server.read_names()
                    except EngineUnavailable as error:
                        return error.message
                    if any(one.name not in names and one.name not in self.refused for one in self._adapters):
                        return "it was restarted, without the adapters"
                    server.is_ready = True
            return "it does not answer"
        finally:
            hung.cancel()
            await asyncio.gather(hung, return_exceptions=True)
