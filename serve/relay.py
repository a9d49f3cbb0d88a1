"""Relaying: a request to vLLM and its answer back, with as little work in between as possible.

Bytes of a plain model's answer are passed on as they come. Owns what can go wrong on the way: the engine is away,
silent, refuses, or dies in a stream; each becomes one of our errors, or one error event after a stream has begun.
Does not know what the bytes mean beyond `data: {"error"` and `[DONE]`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx

from core.errors import EngineError, EngineTimeout, EngineUnavailable, InputError, LoamError
from serve.engine import Engine

logger = logging.getLogger(__name__)

ERROR_EVENT = b'data: {"error":'
"""How vLLM begins an error event; a model's own text cannot hold it, because its quotes are escaped."""
DONE_EVENT = b"data: [DONE]\n\n"


class RequestRefused(InputError):
    """vLLM refused the request for a reason that the client can mend."""

    openai_code = "invalid_request"


class ContextTooLong(RequestRefused):
    """Prompt and answer do not fit the model's context."""

    openai_code = "context_length_exceeded"


async def send(engine: Engine, path: str, body: bytes, deadline_s: float) -> httpx.Response:
    """Send a request to the engine and wait for the head of its answer.

    Args:
        engine: The engine.
        path: One of vLLM's routes.
        body: JSON.
        deadline_s: Longest wait in seconds.

    Returns:
        The open answer, status 200; the caller closes it.

    Raises:
        EngineUnavailable: The engine is not ready, or went away.
        EngineTimeout: The deadline passed.
        RequestRefused: vLLM answered 4xx.
        EngineError: vLLM answered 5xx.
    """
    engine.check_ready()
    headers = {**engine.headers, "content-type": "application/json"}
    request = engine.client.build_request("POST", path, content=body, headers=headers)
    try:
        async with asyncio.timeout(deadline_s):
            answer = await engine.client.send(request, stream=True)
            if answer.status_code == httpx.codes.OK:
                return answer
            async with aclosing(answer):
                content = await answer.aread()
    except TimeoutError as error:
        raise describe_silence(deadline_s) from error
    except httpx.HTTPError as error:
        raise describe_loss(engine) from error
    raise describe_refusal(engine, answer.status_code, content)


async def fetch(engine: Engine, path: str, body: bytes, deadline_s: float) -> bytes:
    """Send a request to the engine and return its whole answer. Arguments and errors are those of `send`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    answer = await send(engine, path, body, deadline_s)
    async with aclosing(answer):
        try:
            async with asyncio.timeout_at(end):
                return await answer.aread()
        except TimeoutError as error:
            raise describe_silence(deadline_s) from error
        except httpx.HTTPError as error:
            raise describe_loss(engine) from error


class EventStream:
    """An event stream from the engine whose first bytes are there. Iterate over it once; close it in any case.

    It ends well with `[DONE]`, or with one error event where the engine failed; never with both, never within an event.
    """

    def __init__(self, engine: Engine, answer: httpx.Response, first: bytes, chunks: AsyncIterator[bytes]) -> None:
        """Take over an open answer.

        Args:
            engine: Where it comes from.
            answer: The open answer.
            first: The first bytes of its body.
            chunks: The rest.
        """
        self._engine = engine
        self._answer = answer
        self._first = first
        self._chunks = chunks

    async def aclose(self) -> None:
        """Close the request in the engine, which ends its work on it."""
        await self._answer.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield whole events as they come."""
        pending, last, chunk = b"", b"", self._first
        try:
            while chunk:
                complete, separator, pending = (pending + chunk).rpartition(b"\n\n")
                complete += separator
                at = complete.find(ERROR_EVENT)
                if at >= 0:
                    reason = complete[at : at + 300].decode(errors="replace")
                    logger.error("engine failed in a stream", extra={"event": reason})
                    self._engine.suspect()
                    yield complete[:at]
                    yield format_error_event(EngineError("The model server failed while it answered."))
                    return
                if complete:
                    last = complete[-len(DONE_EVENT) :]
                    yield complete
                chunk = await anext(self._chunks, b"")
        except httpx.HTTPError:
            last = b""
        if last != DONE_EVENT:
            yield format_error_event(describe_loss(self._engine))


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


async def open_stream(engine: Engine, path: str, body: bytes, deadline_s: float) -> EventStream:
    """Send a request to the engine and return its event stream, once the first bytes are there.

    Args:
        engine: The engine.
        path: One of vLLM's routes.
        body: JSON with `stream: true`.
        deadline_s: Longest wait in seconds for the first byte of the body.

    Returns:
        The stream; the caller closes it.

    Raises:
        As `send`.
    """
    end = asyncio.get_running_loop().time() + deadline_s
    answer = await send(engine, path, body, deadline_s)
    chunks = answer.aiter_raw()
    try:
        async with asyncio.timeout_at(end):
            first = await anext(chunks, b"")
    except BaseException as error:
        await answer.aclose()
        if isinstance(error, TimeoutError):
            raise describe_silence(deadline_s) from error
        if isinstance(error, httpx.HTTPError):
            raise describe_loss(engine) from error
        raise
    return EventStream(engine, answer, first, chunks)


def format_error_event(error: LoamError) -> bytes:
    """Return an error as the one event that ends a stream."""
    return f"data: {json.dumps(error.to_openai(), ensure_ascii=False)}\n\n".encode()


def describe_silence(deadline_s: float) -> EngineTimeout:
    """Return the error for an engine that took a request and stayed silent."""
    return EngineTimeout(f"The model server did not answer within {deadline_s:g} s.", retry_after_s=5)


def describe_loss(engine: Engine) -> EngineUnavailable:
    """Return the error for an engine that went away while it had a request, and let its health be looked at."""
    engine.suspect()
    return EngineUnavailable(
        "The model server stopped while it had this request; it is being restarted. Try again in a moment.",
        retry_after_s=engine.expected_wait_s(),
    )


def describe_refusal(engine: Engine, status: int, content: bytes) -> LoamError:
    """Turn vLLM's error answer into one of ours.

    Args:
        engine: The engine, for the time after which a retry makes sense.
        status: Of vLLM's answer.
        content: Its body.
    """
    message, param = _read_error(content)
    if status in (401, 403, 404) or status >= 500:  # nothing that the client did: names and keys are checked before
        logger.error("engine error", extra={"status": status, "reason": message[:500]})
        if status >= 500:
            engine.suspect()
            return EngineUnavailable("The model server failed on this request.", retry_after_s=engine.expected_wait_s())
        return EngineError("The model server did not take the request.")
    if "maximum context length" in message:
        return ContextTooLong(message, param="messages")
    return RequestRefused(message, param=param)


def _read_error(content: bytes) -> tuple[str, str | None]:
    try:
        error: Any = json.loads(content)["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return content[:500].decode(errors="replace") or "no reason given", None
