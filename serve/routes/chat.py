"""POST /v1/chat/completions: base models and adapters, relayed from vLLM byte for byte, and assistants."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from core.errors import LoamError
from retrieval.searcher import Hit
from serve.answering import AnswerEvent, Assistant, CitedEvent, EndEvent, SearchedEvent, TextEvent
from serve.catalog import Entry
from serve.citing import Citation
from serve.gateway_state import (
    CurrentGateway,
    Gateway,
    read_base_url,
    run_for_client,
    take_model,
    wait_for_disconnect,
)
from serve.inquiry import read_chat_request
from serve.owners import Caller, CurrentCaller
from serve.prompting import read_passage_text
from serve.relay import DONE_EVENT, describe_silence, fetch, format_error_event, open_stream, read_usage
from serve.routes.vector_stores import open_stores
from serve.schemas.chat import ChatRequest
from serve.schemas.relayed import RelayedRequest
from serve.schemas.strict import StrictRoute

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/chat", tags=["chat"], route_class=StrictRoute)

Opening = TypeVar("Opening")
UPSTREAM_PATH = "/v1/chat/completions"


class ClosableEvents(Protocol):
    """A stream of encoded events that can be closed at any time."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the events."""

    async def aclose(self) -> None:
        """Close the source."""


class EventAnswer(Response):
    """A stream of events that closes its source however it ends: done, failed, or left by the client, even at once."""

    def __init__(self, events: ClosableEvents, when_closed: Callable[[], None] | None = None) -> None:
        """Stream from a source.

        Args:
            events: The source.
            when_closed: Called at the very end.
        """
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._when_closed = when_closed

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        sending = asyncio.ensure_future(self._send_events(send))
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for unfinished in (sending, leaving):
                unfinished.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
            if self._when_closed is not None:
                self._when_closed()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.post("/completions", responses={200: {"content": {"text/event-stream": {}}}})
async def create_chat_completion(
    body: ChatRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Answer a chat."""
    entry = take_model(request, gateway, body.model, caller.owner)
    request.state.log |= {"model": entry.name, "stream": bool(body.stream)}
    if entry.assistant is not None:
        return await answer_as_assistant(entry.assistant, body, request, gateway, caller)
    return await relay_answer(UPSTREAM_PATH, entry, body, request, gateway, caller)


async def relay_answer(
    path: str, entry: Entry, body: RelayedRequest, request: Request, gateway: Gateway, caller: Caller
) -> Response:
    """Pass on what vLLM answers on one of its paths, streamed or whole."""
    payload = body.to_upstream(entry.target)
    if body.stream:
        hides_usage = not (body.stream_options and body.stream_options.include_usage)
        opening = open_stream(gateway.engine, path, payload, gateway.first_byte_timeout_s, hides_usage=hides_usage)
        stream = await run_for_client(request, opening)
        gateway.metrics.first_token.labels(entry.name).observe(time.perf_counter() - request.state.started)
        return EventAnswer(stream, lambda: gateway.note_usage(caller, entry.name, stream.read_usage()))
    answer = await run_for_client(request, fetch(gateway.engine, path, payload, gateway.answer_timeout_s))
    gateway.note_usage(caller, entry.name, read_usage(answer))
    return Response(answer, media_type="application/json")


async def answer_as_assistant(
    assistant: Assistant, body: ChatRequest, request: Request, gateway: Gateway, caller: Caller
) -> Response:
    """Answer a chat from documents, streamed or whole: the same events either way."""
    name = assistant.name
    if assistant.owner is not None:
        await open_stores(gateway, assistant.config.stores, assistant.owner)
    inquiry = await gateway.library.run(read_chat_request, body)
    events = gateway.answering.answer(assistant, inquiry)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    shape = AnswerShape(name, read_base_url(request, gateway), include_usage=include_usage)
    if body.stream:
        opening = await run_for_client(request, read_opening(events))
        gateway.metrics.first_token.labels(name).observe(time.perf_counter() - request.state.started)
        stream = AssistantStream(shape, opening, events)
        return EventAnswer(stream, lambda: gateway.note_usage(caller, name, stream.usage, "".join(stream.said)))
    whole = await run_for_client(request, collect(shape, events, gateway.answer_timeout_s))
    gateway.note_usage(caller, name, whole["usage"])
    return JSONResponse(whole)


async def read_opening(events: AsyncIterator[Opening]) -> list[Opening]:
    """Return an answer's events to its first word; an error before that is still a plain answer."""
    opening: list[Opening] = []
    async for event in events:
        opening.append(event)
        if not isinstance(event, SearchedEvent):
            break
    return opening


class AnswerShape:
    """The OpenAI objects of one answer: same id and time in all of them. Collects what the answer rests on."""

    def __init__(self, model: str, base_url: str, *, include_usage: bool) -> None:
        """Begin an answer.

        Args:
            model: What the client asked for.
            base_url: Of the gateway as the client reaches it, for the links of citations.
            include_usage: Whether a stream ends with a chunk that holds the usage.
        """
        self.include_usage = include_usage
        self._base_url = base_url.rstrip("/")
        self._common = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": model}
        self._annotations: list[dict[str, Any]] = []
        self._retrieval: dict[str, Any] = {}

    def note(self, event: SearchedEvent | CitedEvent) -> None:
        """Keep what was searched, or a citation, for the answer's end."""
        match event:
            case SearchedEvent():
                self._retrieval = shape_retrieval(event)
            case CitedEvent(citation):
                self._annotations.append(shape_citation(citation, self._base_url))

    def completion(self, text: str, end: EndEvent) -> dict[str, Any]:
        """Return the whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": self._annotations}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason}
        body = {"object": "chat.completion", **self._common, "choices": [choice], "usage": end.usage}
        return body | {"retrieval": self._retrieval}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        """Return one event of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._encode({"choices": [choice], **more})

    def ending(self, end: EndEvent) -> Iterator[bytes]:
        """Yield a stream's last events: what the answer rests on, why it ends and, where wanted, the usage."""
        yield self.chunk({"annotations": self._annotations}, retrieval=self._retrieval)
        yield self.chunk({}, end.finish_reason)
        if self.include_usage:
            yield self._encode({"choices": [], "usage": end.usage})

    def _encode(self, fields: dict[str, Any]) -> bytes:
        chunk = {"object": "chat.completion.chunk", **self._common, **fields}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


class AssistantStream:
    """An assistant's answer as server-sent events."""

    def __init__(self, shape: AnswerShape, opening: list[AnswerEvent], rest: AsyncGenerator[AnswerEvent, None]) -> None:
        """Take over an answer whose first word is there."""
        self.usage: dict[str, Any] | None = None
        self.said: list[str] = []
        self._shape = shape
        self._opening = opening
        self._rest = rest

    async def aclose(self) -> None:
        """End the answer, and with it the engine's work on it."""
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the events; a fault in the middle is one error event and the end."""
        try:
            yield self._shape.chunk({"role": "assistant", "content": ""})
            for event in self._opening:
                for part in self._encode(event):
                    yield part
            async for event in self._rest:
                for part in self._encode(event):
                    yield part
        except LoamError as error:
            logger.error("answer broken off", extra={"reason": error.message})
            yield format_error_event(error)
            return
        yield DONE_EVENT

    def _encode(self, event: AnswerEvent) -> Iterable[bytes]:
        match event:
            case SearchedEvent() | CitedEvent():
                self._shape.note(event)
                return []
            case TextEvent(text):
                self.said.append(text)
                return [self._shape.chunk({"content": text})] if text else []
            case EndEvent():
                self.usage = event.usage
                return self._shape.ending(event)


async def collect(shape: AnswerShape, events: AsyncIterator[AnswerEvent], deadline_s: float) -> dict[str, Any]:
    """Wait for a whole answer.

    Raises:
        EngineTimeout: It took longer than the deadline.
        LoamError: As the events raise it.
    """
    text: list[str] = []
    end = EndEvent("stop", {})
    try:
        async with asyncio.timeout(deadline_s):
            async for event in events:
                match event:
                    case TextEvent(stretch):
                        text.append(stretch)
                    case EndEvent():
                        end = event
                    case SearchedEvent() | CitedEvent():
                        shape.note(event)
    except TimeoutError as error:
        raise describe_silence(deadline_s) from error
    return shape.completion("".join(text), end)


def shape_citation(citation: Citation, base_url: str) -> dict[str, Any]:
    """Return a citation as OpenAI's annotation of a chat's message."""
    source = citation.source
    url = f"{base_url}/sources/{source.chunk_id}"
    where = {"start_index": citation.start, "end_index": citation.end, "title": source.title, "url": url}
    return {"type": "url_citation", "url_citation": where}


def shape_retrieval(event: SearchedEvent) -> dict[str, Any]:
    """Return what was searched and what the model was given, as the answer tells it."""
    return {
        "query": event.found.query,
        "stores": [searched.store for searched in event.found.searched],
        "below_min_score": event.found.below_min_score,
        "hits": [shape_hit(n, hit) for n, hit in enumerate(event.hits, start=1)],
    }


def shape_hit(n: int, hit: Hit) -> dict[str, Any]:
    """Return a passage that the model was given."""
    return {
        "n": n,
        "store": hit.store,
        "file": hit.file,
        "heading": hit.heading,
        "page": hit.page,
        "chunk_id": hit.chunk_id,
        "score": round(hit.score, 4),
        "relevance": round(hit.relevance, 4),
        "stages": hit.describe_stages(),
        "start": hit.start if hit.context_start is None else hit.context_start,
        "end": hit.end if hit.context_end is None else hit.context_end,
        "text": read_passage_text(hit),
    }
