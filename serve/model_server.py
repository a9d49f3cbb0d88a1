"""One vLLM server as its client sees it: where it listens, the key that it wants, how it is, what it holds.

Speaks vLLM's own routes for health, models, adapters and metrics, asks it for the one token that shows that it still
generates, and opens requests to it. Starts, watches and chooses nothing: engine.py does for the server that the gateway
runs itself, fleet.py for servers that others run.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx

from core.errors import EngineError, EngineUnavailable
from core.manifest import Canary

logger = logging.getLogger(__name__)

UNIX = "unix:"
CONNECT_TIMEOUT_S = 2.0
HEALTH_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
KEEP_ALIVE_S = 3.0
"""How long an unused connection is kept: less than vLLM's 5 s, so that no request meets one that vLLM is closing."""
CANARIES_ALLOWED = 2
CANARY_PROMPT = [1, 2, 3]
PROBE_IDS = list(range(100, 132))
"""Token ids that every vocabulary has; what they mean does not matter."""


class Health(Enum):
    """What a server says of itself: it lives on for a while when its core is dead, and then answers 503."""

    GOOD = "good"
    DEAD = "dead"
    SILENT = "silent"
    GONE = "gone"


class Overloaded(EngineUnavailable):
    """Every vLLM server has as many requests as it may be given."""

    openai_code = "overloaded"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that every server must hold.

    Attributes:
        name: Its name in requests to the server; never reused for other weights.
        path: Its folder.
        canary: What shows that it is at work, or None.
        is_needed: Whether a server is of no use without it; another that it refuses is left out.
    """

    name: str
    path: Path
    canary: Canary | None = None
    is_needed: bool = True


class ModelServer:
    """A vLLM server's client. Made and used within one event loop."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """Prepare to speak to a server; nothing is sent yet.

        Args:
            address: `unix:PATH`, or `http://HOST:PORT` (or https).
            key: What its routes below /v1 want; None for none.
        """
        self.address = address
        self.key = key
        self.model = ""
        self.max_model_len = 0
        self.is_ready = False
        self.in_flight = 0
        self.last_asked_at = float("-inf")
        self.last_answer_at = float("-inf")
        self._path = address.removeprefix(UNIX) if address.startswith(UNIX) else None
        self._base_url = "http://vllm" if self._path else address.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._suspected = asyncio.Event()
        self._answers: set[aiohttp.ClientResponse] = set()
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self._path, limits=limits, trust_env=False),
            base_url=self._base_url,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request must carry."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    async def post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Send JSON for an answer to a client of ours, and return it when its head is there; the caller closes it.

        aiohttp carries what answers are made of, because it costs a fifth of what httpx does (docs/decisions/0068).

        Args:
            path: One of vLLM's routes.
            body: JSON.

        Raises:
            aiohttp.ClientConnectorError: Nothing was sent: the server cannot be reached.
            aiohttp.ClientError: The server went away.
        """
        self.last_asked_at = time.monotonic()
        session = self._session or self._open_session()
        headers = {"content-type": "application/json", **self.headers}
        answer = await session.post(self._base_url + path, data=body, headers=headers, allow_redirects=False)
        self._answers.add(answer)
        return answer

    def close_answer(self, answer: aiohttp.ClientResponse) -> None:
        """Close what `post` returned, which ends the server's work on it where there is some left."""
        self._answers.discard(answer)
        answer.close()

    def break_off(self) -> None:
        """Close every answer that is open: whoever reads one is told that the server is gone."""
        for answer in list(self._answers):
            self.close_answer(answer)

    def _open_session(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self._path is not None:
            connector = aiohttp.UnixConnector(self._path, limit=0, keepalive_timeout=KEEP_ALIVE_S)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent"),
            auto_decompress=False,
        )
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()
        if self._session is not None:
            await self._session.close()

    def suspect(self) -> None:
        """Have its health looked at, at once: a request has just failed in it."""
        self._suspected.set()

    async def wait_until_due(self, interval_s: float, *events: "asyncio.Future[Any]") -> None:
        """Return when a look at its health is due: after the interval, on a suspicion, or on one of some events."""
        suspected = asyncio.ensure_future(self._suspected.wait())
        waited: set[asyncio.Future[Any]] = {suspected, *events}
        try:
            await asyncio.wait(waited, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            suspected.cancel()
            await asyncio.gather(suspected, return_exceptions=True)
        self._suspected.clear()

    async def read_health(self) -> Health:
        """Ask the server how it is."""
        try:
            answer = await self.client.get("/health", headers=self.headers, timeout=HEALTH_TIMEOUT_S)
        except httpx.ConnectError:
            return Health.GONE
        except httpx.HTTPError:
            return Health.SILENT
        return Health.GOOD if answer.status_code == httpx.codes.OK else Health.DEAD

    async def read_names(self) -> set[str]:
        """Ask for its base model and its context length, and return the names of all models that it holds.

        Raises:
            EngineUnavailable: It does not say.
        """
        try:
            answer = await self.client.get("/v1/models", headers=self.headers, timeout=30.0)
            models = answer.json()["data"]
            self.model, self.max_model_len = str(models[0]["id"]), int(models[0]["max_model_len"])
            return {str(model["id"]) for model in models}
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise EngineUnavailable("vLLM did not tell its models and its context length.") from error

    async def generate_token(self, timeout_s: float) -> bool:
        """Ask for one token of the base model; return whether it came in time."""
        body = {"model": self.model, "prompt": CANARY_PROMPT, "max_tokens": 1, "temperature": 0}
        try:
            answer = await self.client.post("/v1/completions", json=body, headers=self.headers, timeout=timeout_s)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def wait_until_hung(self, interval_s: float, timeout_s: float) -> None:
        """Return when the server takes requests and answers none: two canary generations in a row have failed.

        While any answer makes progress, nothing is asked: a full server is not a hung one.

        Args:
            interval_s: Without any answer, before a canary is asked.
            timeout_s: Longest wait for it.
        """
        failures = 0
        while failures < CANARIES_ALLOWED:
            idle_s = time.monotonic() - self.last_answer_at
            if failures == 0 and idle_s < interval_s:
                await asyncio.sleep(interval_s - idle_s)
                continue
            asked_at = time.monotonic()
            if await self.generate_token(timeout_s):
                self.last_answer_at = time.monotonic()
            failures = 0 if self.last_answer_at >= asked_at else failures + 1
            if failures:
                logger.error("canary generation failed", extra={"server": self.address, "failures": failures})
                await asyncio.sleep(max(0.0, min(interval_s, timeout_s) - (time.monotonic() - asked_at)))

    async def load(self, adapter: Adapter) -> None:
        """Load an adapter, and ask its canary.

        Raises:
            EngineError: The server refused it, or does not apply it.
            EngineUnavailable: The server is gone.
        """
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path.resolve())}
        try:
            answer = await self.client.post(
                "/v1/load_lora_adapter", json=body, headers=self.headers, timeout=LOAD_TIMEOUT_S
            )
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"vLLM did not answer while it loaded the adapter {adapter.name}.") from error
        if answer.status_code != httpx.codes.OK:
            raise EngineError(
                f"wanted vLLM to load the adapter {adapter.name} from {adapter.path}, found a refusal: "
                f"{answer.text[:500]}. Train it again, or leave it out of adapters=[…]."
            )
        if adapter.canary is not None:
            await self.check_canary(adapter.name, adapter.canary)

    async def load_at_start(self, adapter: Adapter, refused: dict[str, str]) -> None:
        """Load one of the adapters of every start; one that is not needed and refused is left out, and said so.

        Args:
            adapter: The adapter.
            refused: Takes the reason of one that is left out, by its name.

        Raises:
            EngineError: The server refused one that is needed.
            EngineUnavailable: The server is gone.
        """
        try:
            await self.load(adapter)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if adapter.is_needed:
                raise
            refused[adapter.name] = error.message
            logger.error("adapter left out", extra={"adapter": adapter.name, "reason": error.message})

    async def unload(self, name: str) -> None:
        """Drop an adapter, if the server is there and has it."""
        body = {"lora_name": name}
        try:
            await self.client.post("/v1/unload_lora_adapter", json=body, headers=self.headers, timeout=LOAD_TIMEOUT_S)
        except httpx.HTTPError:
            logger.info("no server to drop an adapter from", extra={"adapter": name, "server": self.address})

    async def check_difference(self, name: str) -> None:
        """See that an adapter changes what is answered: vLLM can take one and not apply it.

        Raises:
            EngineError: It answers as the base model, to the last digit.
            EngineUnavailable: The server is gone.
        """
        try:
            first, second = [await self._measure(model) for model in (name, self.model)]
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"vLLM did not answer a probe of {name}.") from error
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
        answer = await self.client.post("/v1/completions", json=body, headers=self.headers, timeout=LOAD_TIMEOUT_S)
        if answer.is_server_error:
            raise EngineUnavailable(f"vLLM could not answer a probe of {model} (status {answer.status_code}).")
        try:
            choice = answer.json()["choices"][0]
            return choice["token_ids"], choice["logprobs"]["token_logprobs"]
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"wanted an answer of {model} to a probe, found: {answer.text[:500]}.") from error

    async def check_canary(self, name: str, canary: Canary) -> None:
        """Ask an adapter's canary once: an adapter that the server took and does not apply answers as the base.

        Raises:
            EngineError: It answers as the base, or not at all.
            EngineUnavailable: The server is gone.
        """
        body = {"model": name, "prompt": canary.prompt_ids, "max_tokens": len(canary.tokens), "temperature": 0}
        body |= {"return_token_ids": True, "add_special_tokens": False}
        try:
            answer = await self.client.post("/v1/completions", json=body, headers=self.headers, timeout=LOAD_TIMEOUT_S)
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

    async def read_metrics(self) -> str:
        """Return vLLM's own metrics in Prometheus' text format.

        Raises:
            EngineUnavailable: It does not say.
        """
        try:
            answer = await self.client.get("/metrics", headers=self.headers, timeout=HEALTH_TIMEOUT_S)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise EngineUnavailable("vLLM did not tell its metrics.") from error
        return answer.text


class Upstream(Protocol):
    """Whoever sees to the vLLM servers behind a gateway: Engine runs one itself, Fleet watches those of others."""

    servers: list[ModelServer]
    refused: dict[str, str]

    @property
    def state(self) -> "EngineState":
        """Where it is in its life."""

    @property
    def max_model_len(self) -> int:
        """How many tokens prompt and answer may have together."""

    def check_ready(self) -> None:
        """Let a request through only while a server is ready.

        Raises:
            EngineUnavailable: None is; with the seconds after which one should be.
        """

    def choose(self) -> ModelServer:
        """Return the server that a request goes to.

        Raises:
            EngineUnavailable: None is ready.
            Overloaded: Those that are have all the requests that they may be given.
        """

    def expected_wait_s(self) -> int:
        """Return the whole seconds after which a server should be ready; at least 1."""

    def expect(self, adapter: Adapter) -> None:
        """Have every server hold an adapter from its first start on."""

    async def add_adapter(self, adapter: Adapter) -> None:
        """Have every server hold one more adapter, from now on and after each restart.

        Raises:
            EngineError: A server refused it; then none keeps it.
        """

    async def remove_adapter(self, name: str) -> None:
        """Have no server hold an adapter any more."""

    async def check_difference(self, name: str) -> None:
        """See that an adapter changes what every server answers.

        Raises:
            EngineError: One answers as with the base model.
        """

    async def pause(self, left_s: Callable[[], float], drain: Callable[[], Awaitable[None]]) -> None:
        """Let something else have the card, for about as long as `left_s` tells, once `drain` has returned."""

    def resume(self) -> None:
        """Take the card back."""

    async def stop(self) -> None:
        """End what was started, and close every connection. May be called twice."""


class EngineState(Enum):
    """Where the engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    PAUSED = "paused"
    UNREACHABLE = "unreachable"


def choose_least_loaded(servers: list[ModelServer], max_in_flight: int) -> ModelServer:
    """Return the ready server with the fewest requests, of several the one that was asked longest ago.

    Args:
        servers: At least one of them is ready.
        max_in_flight: Requests that one server may be given at a time.

    Raises:
        Overloaded: Each has that many.
    """
    ready = [server for server in servers if server.is_ready]
    server = min(ready, key=lambda server: (server.in_flight, server.last_asked_at))
    if server.in_flight >= max_in_flight:
        raise Overloaded(
            f"The model server has {server.in_flight} requests, which is all that it may be given at a time "
            "(engine.max_in_flight). Try again in a moment.",
            retry_after_s=1,
        )
    return server
