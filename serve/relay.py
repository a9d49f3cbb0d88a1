"""Relaying: a request to vLLM and its answer back, with as little work in between as possible.

Bytes of a plain model's answer are passed on as they come. Owns what can go wrong on the way: the engine is away,
silent, refuses, or dies in a stream; each becomes one of our errors, or one error event after a stream has begun.
Does not know what the bytes mean beyond `data: {"error"`, `"usage":` and `[DONE]`.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from core.errors import EngineError, EngineTimeout, EngineUnavailable, InputError, LoamError
from serve.model_server import ModelServer, Upstream

logger = logging.getLogger(__name__)

ERROR_EVENT = b'data: {"error":'
"""How vLLM begins an error event; a model's own text cannot hold it, because its quotes are escaped."""
USAGE = b'"usage":'
"""What the one event that tells the tokens holds; besides it only names of log-probabilities can, so it is parsed."""
DONE_EVENT = b"data: [DONE]\n\n"
PROMPT_FIELDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
"""What the prompt is called, by route."""
LOSSES = (aiohttp.ClientError, OSError)
"""What is raised when a server goes away or, TimeoutError being an OSError, too, when a deadline passes."""
UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError)
"""What is raised when there is no connection: nothing was sent."""


class RequestRefused(InputError):
    """vLLM refused the request for a reason that the client can mend."""

    openai_code = "invalid_request"


class ContextTooLong(RequestRefused):
    """Prompt and answer do not fit the model's context."""

    openai_code = "context_length_exceeded"


@dataclass(slots=True)
class Answer:
    """An open answer, status 200; it counts as one of its server's requests until it is closed.

    Attributes:
        server: Where it comes from.
        response: aiohttp's side of it.
    """

    server: ModelServer
    response: aiohttp.ClientResponse
    _is_open: bool = True

    def close(self) -> None:
        """Close the request, which ends the server's work on it where there is some left. May be called twice."""
        if self._is_open:
            self._is_open = False
            self.server.in_flight -= 1
            self.server.close_answer(self.response)


async def send(upstream: Upstream, path: str, body: bytes, deadline_s: float) -> Answer:
    """Send a request to a model server and wait for the head of its answer.

    Args:
        upstream: The servers.
        path: One of vLLM's routes.
        body: JSON.
        deadline_s: Longest wait in seconds.

    Returns:
        The open answer, status 200; the caller closes it.

    Raises:
        EngineUnavailable: No server is ready, or the one that had the request went away.
        EngineTimeout: The deadline passed.
        RequestRefused: vLLM answered 4xx.
        EngineError: vLLM answered 5xx.
    """
    end = asyncio.get_running_loop().time() + deadline_s
    while True:
        server = upstream.choose()
        server.in_flight += 1
        response = None
        try:
            async with asyncio.timeout_at(end):
                response = await server.post(path, body)
        except UNREACHED:
            server.is_ready = False  # nothing was sent, so that another server may take it
            server.suspect()
            continue
        except LOSSES as error:
            raise translate(error, upstream, server, deadline_s) from error
        finally:
            if response is None:
                server.in_flight -= 1
        answer = Answer(server, response)
        if response.status == 200:
            return answer
        try:
            async with asyncio.timeout_at(end):
                content = await response.read()
        except LOSSES as error:
            raise translate(error, upstream, server, deadline_s) from error
        finally:
            answer.close()
        raise describe_refusal(upstream, server, path, response.status, content)


async def fetch(upstream: Upstream, path: str, body: bytes, deadline_s: float) -> bytes:
    """Send a request to a model server and return its whole answer. Arguments and errors are those of `send`."""
    end = asyncio.get_running_loop().time() + deadline_s
    answer = await send(upstream, path, body, deadline_s)
    try:
        async with asyncio.timeout_at(end):
            content = await answer.response.read()
    except LOSSES as error:
        raise translate(error, upstream, answer.server, deadline_s) from error
    finally:
        answer.close()
    answer.server.last_answer_at = time.monotonic()
    return content


class EventStream:
    """An event stream from a model server whose first bytes are there. Iterate over it once; close it in any case.

    It ends well with `[DONE]`, or with one error event where the server failed; never with both, never within an event.

    Attributes:
        usage: What the answer took in tokens, once it has ended well and the server has told it.
    """

    def __init__(self, upstream: Upstream, answer: Answer, first: bytes, *, hides_usage: bool = False) -> None:
        """Take over an open answer.

        Args:
            upstream: Where it comes from.
            answer: The open answer.
            first: The first bytes of its body.
            hides_usage: Whether to leave out the event that tells the usage alone: the client has not asked for it.
        """
        self.usage: dict[str, Any] | None = None
        self._upstream = upstream
        self._answer = answer
        self._first = first
        self._hides_usage = hides_usage
        self._events = 0

    async def aclose(self) -> None:
        """Close the request in the server, which ends its work on it."""
        self._answer.close()

    def read_usage(self) -> dict[str, Any]:
        """Return what the answer took in tokens; where it was broken off before that was told, an event is one."""
        return self.usage or {"completion_tokens": self._events, "total_tokens": self._events}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield whole events as they come."""
        server, read = self._answer.server, self._answer.response.content.readany
        pending, last, chunk = b"", b"", self._first
        try:
            while chunk:
                server.last_answer_at = time.monotonic()
                if pending or not chunk.endswith(b"\n\n"):
                    complete, separator, pending = (pending + chunk).rpartition(b"\n\n")
                    complete += separator
                else:
                    complete = chunk
                if ERROR_EVENT in complete:
                    if before := complete[: complete.find(ERROR_EVENT)]:
                        yield before
                    yield format_error_event(self._describe_error_event(complete))
                    return
                if USAGE in complete:
                    complete = self._take_usage(complete)
                if complete:
                    last = complete[-len(DONE_EVENT) :]
                    self._events += complete.count(b"\n\n")
                    yield complete
                chunk = await read()
        except LOSSES:
            last = b""
        if last != DONE_EVENT:
            yield format_error_event(describe_loss(self._upstream, server))

    def _describe_error_event(self, events: bytes) -> EngineError:
        at = events.find(ERROR_EVENT)
        reason = events[at : at + 300].decode(errors="replace")
        logger.error("engine failed in a stream", extra={"event": reason})
        self._answer.server.suspect()
        return EngineError("The model server failed while it answered.")

    def _take_usage(self, events: bytes) -> bytes:
        """Remember the usage; return the events without the one that tells nothing else, where it is to be hidden."""
        kept = []
        for event in events.split(b"\n\n")[:-1]:
            is_hidden = False
            if USAGE in event:
                try:
                    chunk = json.loads(event.removeprefix(b"data: "))
                    self.usage = chunk["usage"] or self.usage
                    is_hidden = self._hides_usage and not chunk["choices"]
                except (ValueError, LookupError, TypeError):
                    is_hidden = False
            if not is_hidden:
                kept.append(event + b"\n\n")
        return b"".join(kept)


async def read_chunks(stream: EventStream) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a stream as values, for those who need to look inside.

    Args:
        stream: Not read from yet.

    Raises:
        EngineError: The engine failed in the middle, or sent something that is no chunk.
    """
    async for events in stream:
        for event in events.split(b"\n\n"):
            data = event.removeprefix(b"data: ")
            if not data or data == b"[DONE]":
                continue
            try:
                chunk: dict[str, Any] = json.loads(data)
            except ValueError as error:
                raise EngineError("The model server sent something that cannot be read.") from error
            if "error" in chunk:
                kind = EngineUnavailable if chunk["error"]["code"] == EngineUnavailable.openai_code else EngineError
                raise kind(chunk["error"]["message"], retry_after_s=1)
            yield chunk


async def open_stream(
    upstream: Upstream, path: str, body: bytes, deadline_s: float, *, hides_usage: bool = False
) -> EventStream:
    """Send a request to a model server and return its event stream, once the first bytes are there.

    Args:
        upstream: The servers.
        path: One of vLLM's routes.
        body: JSON with `stream: true`.
        deadline_s: Longest wait in seconds for the first byte of the body.
        hides_usage: Whether to leave out the event that tells the usage alone: the client has not asked for it.

    Returns:
        The stream; the caller closes it.

    Raises:
        As `send`.
    """
    end = asyncio.get_running_loop().time() + deadline_s
    answer = await send(upstream, path, body, deadline_s)
    try:
        async with asyncio.timeout_at(end):
            first = await answer.response.content.readany()
    except BaseException as error:
        answer.close()
        if isinstance(error, LOSSES):
            raise translate(error, upstream, answer.server, deadline_s) from error
        raise
    return EventStream(upstream, answer, first, hides_usage=hides_usage)


def read_usage(answer: bytes) -> dict[str, Any] | None:
    """Return what a whole answer took in tokens, without reading all of it; None where it does not tell."""
    at = answer.rfind(USAGE)
    try:
        usage, _ = json.JSONDecoder().raw_decode(answer[at + len(USAGE) :].decode().lstrip()) if at >= 0 else (None, 0)
    except ValueError:
        return None
    return usage if isinstance(usage, dict) else None


def format_error_event(error: LoamError) -> bytes:
    """Return an error as the one event that ends a stream."""
    return f"data: {json.dumps(error.to_openai(), ensure_ascii=False)}\n\n".encode()


def translate(error: BaseException, upstream: Upstream, server: ModelServer, deadline_s: float) -> LoamError:
    """Return the error of ours that stands for one of LOSSES, raised while a server had a request."""
    if isinstance(error, TimeoutError):
        return describe_silence(deadline_s)
    return describe_loss(upstream, server)


def describe_silence(deadline_s: float) -> EngineTimeout:
    """Return the error for an engine that took a request and stayed silent."""
    return EngineTimeout(f"The model server did not answer within {deadline_s:g} s.", retry_after_s=5)


def describe_loss(upstream: Upstream, server: ModelServer) -> EngineUnavailable:
    """Return the error for a server that went away while it had a request, and let its health be looked at."""
    server.suspect()
    return EngineUnavailable(
        "The model server stopped while it had this request; it is being restarted. Try again in a moment.",
        retry_after_s=upstream.expected_wait_s(),
    )


def describe_refusal(upstream: Upstream, server: ModelServer, path: str, status: int, content: bytes) -> LoamError:
    """Turn vLLM's error answer into one of ours.

    Args:
        upstream: The servers, for the time after which a retry makes sense.
        server: The one that answered.
        path: The route that was asked.
        status: Of vLLM's answer.
        content: Its body.
    """
    message, param = _read_error(content)
    if status in (401, 403, 404) or status >= 500:  # nothing that the client did: names and keys are checked before
        logger.error("engine error", extra={"server": server.address, "status": status, "reason": message[:500]})
        server.suspect()
        if status >= 500:
            wait_s = upstream.expected_wait_s()
            return EngineUnavailable("The model server failed on this request.", retry_after_s=wait_s)
        return EngineError("The model server did not take the request.")
    if "maximum context length" in message:
        return ContextTooLong(message, param=PROMPT_FIELDS.get(path))
    return RequestRefused(message, param=param)


def _read_error(content: bytes) -> tuple[str, str | None]:
    try:
        error: Any = json.loads(content)["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return content[:500].decode(errors="replace") or "no reason given", None
