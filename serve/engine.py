"""The engine: one vLLM server as a child process, started, watched, restarted and stopped.

Owns the private folder with the socket, the adapters that must be loaded before the engine counts as ready, and
the HTTP client that speaks to it. Knows vLLM's own routes for health and adapters; knows nothing of the gateway's
routes and nothing of what the command starts, so that the tests can let it run their own fake vLLM.
"""

import asyncio
import dataclasses
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import httpx

from core.errors import EngineError, EngineUnavailable
from core.manifest import Canary
from serve.engine_command import EngineCommand, EngineConfig
from serve.engine_process import EngineProcess, launch

logger = logging.getLogger(__name__)

LOG_LINES_SHOWN = 12
POLL_INTERVAL_S = 0.25
SILENCES_ALLOWED = 3
PROBE_IDS = list(range(100, 132))
"""Token ids that every vocabulary has."""
HEALTH_TIMEOUT_S = 10.0
MAX_TEMPORARY_PATH = 50
"""Bytes that leave room for our folder's name and for the names of vLLM's own sockets, 36 bytes each."""

Progress = Callable[[float, str], None]
"""Told now and then while the engine starts: seconds since the start, last line of its log."""


class EngineState(Enum):
    """Where the engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    PAUSED = "paused"


class Health(Enum):
    """What the engine says of itself: its server lives on for a while when its core is dead, and then answers 503."""

    GOOD = "good"
    DEAD = "dead"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that the engine must hold.

    Attributes:
        name: Its name in requests to the engine; never reused for other weights.
        path: Its folder.
        canary: What shows that it is at work, or None.
        is_needed: Whether the engine is of no use without it; another that it refuses is left out.
    """

    name: str
    path: Path
    canary: Canary | None = None
    is_needed: bool = True


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
        self.max_model_len = 0
        self.base_name = ""
        self.scratch = make_scratch()
        self.refused: dict[str, str] = {}
        self._adapters = list(adapters)
        self._changes = asyncio.Lock()
        self._log_path = log_path
        self._process: EngineProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._suspected = asyncio.Event()
        self._command: EngineCommand | None = None
        self._pause_left_s: Callable[[], float] = lambda: 0.0
        self._last_ready_s = 30.0
        self._started_at = 0.0
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://vllm",
            timeout=httpx.Timeout(None, connect=2.0),
        )

    @property
    def socket(self) -> Path:
        """The unix socket that the engine listens on."""
        return self.scratch / "vllm.sock"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request to the engine must carry."""
        return {"authorization": f"Bearer {self._process.key}"} if self._process else {}

    def check_ready(self) -> None:
        """Let a request through only while the engine is ready.

        Raises:
            EngineUnavailable: It is not; with the seconds after which it should be.
        """
        if self.state is EngineState.READY:
            return
        retry_after_s = self.expected_wait_s()
        why = " while a fine-tuning job has the card" if self.state is EngineState.PAUSED else ""
        raise EngineUnavailable(
            f"The model server is {self.state.value}{why}. Try again in about {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )

    def suspect(self) -> None:
        """Look at the engine's health at once: a request has just failed in it."""
        self._suspected.set()

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
        await self.client.aclose()
        shutil.rmtree(self.scratch, ignore_errors=True)

    async def _end(self, state: EngineState) -> None:
        """End the watching and the process."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self.state = state
        if self._process is not None:
            await self._process.end(self.config.stop_timeout_s)

    def _guard(self, command: EngineCommand) -> None:
        """Watch over the engine from now on."""
        self._watcher = asyncio.create_task(self._watch(command), name="engine-watcher")
        self._watcher.add_done_callback(report_crash)

    async def _launch(self, command: EngineCommand, progress: Progress) -> None:
        """Start the process, wait for its health, load the adapters."""
        self._started_at = time.monotonic()
        self._process = await launch(command, self.socket, self._log_path)
        await self._wait_until_healthy(self._process, progress)
        self.base_name, self.max_model_len = await self._read_base()
        for adapter in self._adapters:
            await self._load_at_start(adapter)
        self._last_ready_s = time.monotonic() - self._started_at
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
            if await self._read_health() is Health.GOOD:
                return
            progress(elapsed, self._read_log_tail(1))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _read_health(self) -> Health:
        try:
            answer = await self.client.get("/health", headers=self.headers, timeout=HEALTH_TIMEOUT_S)
        except httpx.HTTPError:
            return Health.SILENT
        return Health.GOOD if answer.status_code == httpx.codes.OK else Health.DEAD

    async def _read_base(self) -> tuple[str, int]:
        """Return the base model's name, and how many tokens prompt and answer may have together.

        Raises:
            EngineUnavailable: The engine does not say.
        """
        try:
            answer = await self.client.get("/v1/models", headers=self.headers, timeout=30.0)
            base = answer.json()["data"][0]
            return str(base["id"]), int(base["max_model_len"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise EngineUnavailable("vLLM did not tell its context length.") from error

    async def _load_at_start(self, adapter: Adapter) -> None:
        """Load one of the adapters of every start; one that is not needed and refused is left out, and said so."""
        try:
            await self._load(adapter)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if adapter.is_needed:
                raise
            self.refused[adapter.name] = error.message
            logger.error("adapter left out", extra={"adapter": adapter.name, "reason": error.message})

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
                    await self._load(adapter)
                    break
                except EngineUnavailable:  # it went meanwhile, and comes back without this one
                    await asyncio.sleep(POLL_INTERVAL_S)
                    await self._unload(adapter.name)
            self._adapters.append(dataclasses.replace(adapter, is_needed=False))

    async def remove_adapter(self, name: str) -> None:
        """Drop an adapter from the running engine and from its starts; one that is not there is what was wanted."""
        async with self._changes:
            self._adapters = [adapter for adapter in self._adapters if adapter.name != name]
            self.refused.pop(name, None)
            if self.state in (EngineState.STARTING, EngineState.RESTARTING):
                await self.wait_until_ready()  # it may be loading this one
            await self._unload(name)

    async def _unload(self, name: str) -> None:
        """Have the engine drop an adapter, if the engine is there and has it."""
        body = {"lora_name": name}
        try:
            await self.client.post("/v1/unload_lora_adapter", json=body, headers=self.headers, timeout=60.0)
        except httpx.HTTPError:
            logger.info("no engine to drop an adapter from", extra={"adapter": name})

    async def check_difference(self, name: str) -> None:
        """See that an adapter changes what is answered: vLLM can take one and not apply it.

        Raises:
            EngineError: It answers as the base model, to the last digit.
        """
        while True:
            await self.wait_until_ready()
            try:
                first, second = [await self._measure(model) for model in (name, self.base_name)]
                break
            except (httpx.HTTPError, EngineUnavailable):
                await asyncio.sleep(POLL_INTERVAL_S)
        if first == second:
            raise EngineError(
                f"adapter {name}: wanted it to answer otherwise than the base model, found the same to the last digit: "
                "vLLM has loaded it and does not apply it, or nothing was learned. Train longer or with a higher "
                "learning_rate_multiplier."
            )

    async def _measure(self, model: str) -> Any:
        """Return what a model answers first to fixed token ids, with the likelihoods."""
        body = {"model": model, "prompt": PROBE_IDS, "max_tokens": 8, "temperature": 0, "logprobs": 1}
        body |= {"return_token_ids": True, "add_special_tokens": False}
        answer = await self.client.post("/v1/completions", json=body, headers=self.headers, timeout=300.0)
        if answer.is_server_error:
            raise EngineUnavailable(f"vLLM could not answer a probe of {model} (status {answer.status_code}).")
        try:
            choice = answer.json()["choices"][0]
            return choice["token_ids"], choice["logprobs"]["token_logprobs"]
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"wanted an answer of {model} to a probe, found: {answer.text[:500]}.") from error

    async def _load(self, adapter: Adapter) -> None:
        """Load one adapter into the running engine.

        Raises:
            EngineError: The engine refused it.
            EngineUnavailable: The engine is gone.
        """
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path.resolve())}
        try:
            answer = await self.client.post("/v1/load_lora_adapter", json=body, headers=self.headers, timeout=300.0)
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"vLLM did not answer while it loaded the adapter {adapter.name}.") from error
        if answer.status_code != httpx.codes.OK:
            raise EngineError(
                f"wanted vLLM to load the adapter {adapter.name} from {adapter.path}, found a refusal: "
                f"{answer.text[:500]}. Train it again, or leave it out of adapters=[…]."
            )
        if adapter.canary is not None:
            await self._check_canary(adapter.name, adapter.canary)

    async def _check_canary(self, name: str, canary: Canary) -> None:
        """Ask an adapter's canary once: an adapter that the engine took and does not apply answers as the base.

        Raises:
            EngineError: It answers as the base, or not at all.
            EngineUnavailable: The engine is gone.
        """
        body = {"model": name, "prompt": canary.prompt_ids, "max_tokens": len(canary.tokens), "temperature": 0}
        body |= {"return_token_ids": True, "add_special_tokens": False}
        try:
            answer = await self.client.post("/v1/completions", json=body, headers=self.headers, timeout=300.0)
            tokens = answer.json()["choices"][0]["token_ids"]
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"vLLM did not answer the canary of the adapter {name}.") from error
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"wanted an answer to the canary of {name}, found: {answer.text[:500]}.") from error
        if tokens == canary.tokens:
            logger.info("adapter answers its canary", extra={"adapter": name})
        elif tokens == canary.base_tokens[: len(tokens)]:
            raise EngineError(
                f"adapter {name}: wanted it to answer its canary as it was measured, found that it answers as the base "
                "model: vLLM has loaded it and does not apply it. Run scripts/parity.py again, or leave it out of "
                "adapters=[…]."
            )
        else:  # another dtype or another card can turn a tie, which is no fault of the adapter
            logger.warning("adapter answers its canary otherwise than measured", extra={"adapter": name})

    async def _watch(self, command: EngineCommand) -> None:
        """Restart the engine whenever it ends or stops answering, with a growing wait between failures."""
        failures = 0
        while True:
            if self.state is EngineState.READY and self._process is not None:
                await self._wait_for_end(self._process)
                failures = 0
                logger.error("engine is gone", extra={"last_lines": self._read_log_tail()})
            self.state = EngineState.RESTARTING
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

    async def _wait_for_end(self, process: EngineProcess) -> None:
        """Return when the process has ended, says that its core is dead, or has been silent too often."""
        silences, counted_at = 0, time.monotonic()
        while silences < SILENCES_ALLOWED:
            if await self._wait_or_suspect(process):
                return
            health = await self._read_health()
            if health is Health.DEAD:
                return
            if health is Health.GOOD:
                silences = 0
            elif time.monotonic() - counted_at >= self.config.health_interval_s:  # many suspicions are one silence
                silences, counted_at = silences + 1, time.monotonic()

    async def _wait_or_suspect(self, process: EngineProcess) -> bool:
        """Wait until the next look at its health is due or somebody suspects it; return whether it has ended."""
        ended = asyncio.ensure_future(process.wait(self.config.health_interval_s))
        suspected = asyncio.ensure_future(self._suspected.wait())
        try:
            await asyncio.wait({ended, suspected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for unfinished in (ended, suspected):
                unfinished.cancel()
            await asyncio.gather(ended, suspected, return_exceptions=True)
        self._suspected.clear()
        return process.exit_code is not None

    def _read_log_tail(self, lines: int = LOG_LINES_SHOWN) -> str:
        """Return the last lines of the engine's log, at most 8 KiB."""
        with self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - 8192))
            text = log.read().decode(errors="replace")
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
