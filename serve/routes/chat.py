"""POST /v1/chat/completions: base models and adapters, relayed from vLLM byte for byte, and assistants."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from core.errors import LoamError
from serve.answering import AnswerEvent, EndEvent, GroundsEvent, TextEvent
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, Gateway, read_base_url, run_for_client, take_model
from serve.owners import CurrentCaller
from serve.relay import DONE_EVENT, describe_silence, fetch, format_error_event, open_stream
from serve.schemas.chat import ChatRequest
from serve.schemas.strict import StrictRoute

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/chat", tags=["chat"], route_class=StrictRoute)

UPSTREAM_PATH = "/v1/chat/completions"


class ClosableEvents(Protocol):
    """A stream of encoded events that can be closed at any time."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the events."""

    async def aclose(self) -> None:
        """Close the source."""


class EventAnswer(StreamingResponse):
    """A stream of events that closes its source however it ends, even before it began."""

    def __init__(self, events: ClosableEvents) -> None:
        """Stream from a source."""
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


@router.post("/completions")
async def create_chat_completion(
    body: ChatRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Answer a chat."""
    entry = take_model(request, gateway, body.model, caller.owner)
    request.state.log |= {"model": entry.name, "stream": bool(body.stream)}
    if entry.kind is EntryKind.ASSISTANT:
        return await answer_as_assistant(entry.name, body, request, gateway)
    payload = body.to_upstream(entry.target)
    if body.stream:
        opening = open_stream(gateway.engine, UPSTREAM_PATH, payload, gateway.first_byte_timeout_s)
        return EventAnswer(await run_for_client(request, opening))
    answer = await run_for_client(request, fetch(gateway.engine, UPSTREAM_PATH, payload, gateway.answer_timeout_s))
    return Response(answer, media_type="application/json")


async def answer_as_assistant(name: str, body: ChatRequest, request: Request, gateway: Gateway) -> Response:
    """Answer a chat from documents, streamed or whole: the same events either way."""
    events = gateway.answering.answer(name, body, read_base_url(request, gateway))
    shape = AnswerShape(name, bool(body.stream_options and body.stream_options.include_usage))
    if body.stream:
        first = await run_for_client(request, anext(events))  # an error before the first word is still a plain answer
        return EventAnswer(AssistantStream(shape, first, events))
    whole = collect(shape, events, gateway.answer_timeout_s)
    return JSONResponse(await run_for_client(request, whole))


class AnswerShape:
    """The OpenAI objects of one answer: same id and time in all of them."""

    def __init__(self, model: str, include_usage: bool) -> None:
        """Begin an answer.

        Args:
            model: What the client asked for.
            include_usage: Whether a stream ends with a chunk that holds the usage.
        """
        self.include_usage = include_usage
        self._common = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": model}

    def completion(self, text: str, grounds: GroundsEvent, end: EndEvent) -> dict[str, Any]:
        """Return the whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": grounds.annotations}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason}
        body = {"object": "chat.completion", **self._common, "choices": [choice], "usage": end.usage}
        return body | {"retrieval": grounds.retrieval}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        """Return one event of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._encode({"choices": [choice], **more})

    def usage(self, end: EndEvent) -> bytes:
        """Return the event that holds the usage."""
        return self._encode({"choices": [], "usage": end.usage})

    def _encode(self, fields: dict[str, Any]) -> bytes:
        chunk = {"object": "chat.completion.chunk", **self._common, **fields}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


class AssistantStream:
    """An assistant's answer as server-sent events."""

    def __init__(self, shape: AnswerShape, first: AnswerEvent, rest: AsyncGenerator[AnswerEvent, None]) -> None:
        """Take over an answer whose first event is there."""
        self._shape = shape
        self._first = first
        self._rest = rest

    async def aclose(self) -> None:
        """End the answer, and with it the engine's work on it."""
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the events; a fault in the middle is one error event and the end."""
        try:
            yield self._shape.chunk({"role": "assistant", "content": ""})
            for part in self._encode(self._first):
                yield part
            async for event in self._rest:
                for part in self._encode(event):
                    yield part
        except LoamError as error:
            logger.error("answer broken off", extra={"reason": error.message})
            yield format_error_event(error)
            return
        yield DONE_EVENT

    def _encode(self, event: AnswerEvent) -> list[bytes]:
        match event:
            case TextEvent(text):
                return [self._shape.chunk({"content": text})] if text else []
            case GroundsEvent(annotations, retrieval):
                return [self._shape.chunk({"annotations": annotations}, retrieval=retrieval)]
            case EndEvent():
                usage = [self._shape.usage(event)] if self._shape.include_usage else []
                return [self._shape.chunk({}, event.finish_reason), *usage]


async def collect(shape: AnswerShape, events: AsyncIterator[AnswerEvent], deadline_s: float) -> dict[str, Any]:
    """Wait for a whole answer.

    Raises:
        EngineTimeout: It took longer than the deadline.
        LoamError: As the events raise it.
    """
    text: list[str] = []
    grounds, end = GroundsEvent([], {}), EndEvent("stop", {})
    try:
        async with asyncio.timeout(deadline_s):
            async for event in events:
                match event:
                    case TextEvent(stretch):
                        text.append(stretch)
                    case GroundsEvent():
                        grounds = event
                    case EndEvent():
                        end = event
    except TimeoutError as error:
        raise describe_silence(deadline_s) from error
    return shape.completion("".join(text), grounds, end)
