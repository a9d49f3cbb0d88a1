"""/v1/responses: answers with and without file_search, kept so that a conversation can go on. An owner's own only."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from core.errors import LoamError, NotFound
from serve.answering import (
    AnswerEvent,
    Assistant,
    AssistantConfig,
    CallEvent,
    CitedEvent,
    EndEvent,
    PlainEvent,
    SearchedEvent,
    TextEvent,
    build_body,
)
from serve.attached_files import name_hits
from serve.boundary import InvalidRequest, hide_folder
from serve.catalog import Entry, EntryKind
from serve.gateway_state import CurrentGateway, Gateway, run_for_client, take_model
from serve.owners import Caller, CurrentCaller
from serve.prompting import cut_messages
from serve.relay import describe_silence
from serve.repeats import Claim
from serve.response_draft import Event, FoundFile, ResponseDraft, replay, shape_reference, shape_result
from serve.response_request import (
    list_items,
    narrow_search,
    read_inquiry,
    read_messages,
    read_options,
    read_turns,
    shape_frame,
)
from serve.responses import StoredResponse, delete_response, find_response, read_conversation, save_response
from serve.routes.chat import EventAnswer, read_opening
from serve.routes.files import shape_list
from serve.routes.vector_stores import open_stores
from serve.schemas.responses import RESULTS, InputItemQuery, ResponseQuery, ResponseRequest
from serve.schemas.strict import StrictRoute
from serve.windows import Window, cut_window

AnyEvent = AnswerEvent | PlainEvent

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=StrictRoute)


@router.post("", responses={200: {"content": {"text/event-stream": {}}}})
async def create_response(
    body: ResponseRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Answer, or give what an earlier request like it was answered; one that is not stored makes nothing."""
    if body.store is False:
        return await write_response(body, request, gateway, caller, None)
    claim = await gateway.repeats.claim(request, caller.owner, await request.body())
    if claim.earlier is not None:
        return await answer_again(bytes(claim.earlier.body).decode(), body, gateway, caller)
    try:
        return await write_response(body, request, gateway, caller, claim)
    except BaseException:
        await claim.give_back()
        raise


async def write_response(
    body: ResponseRequest, request: Request, gateway: Gateway, caller: Caller, claim: Claim | None
) -> Response:
    """Answer, streamed or whole: the same events either way."""
    entry = take_model(request, gateway, body.model, caller.owner)
    request.state.log |= {"model": entry.name, "stream": bool(body.stream)}
    archive, items = gateway.archive, list_items(body)
    earlier: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        earlier = await archive.run(read_conversation, archive.engine, body.previous_response_id, caller.owner)
    said = [*earlier, *items]
    assistant = await find_assistant(body, entry, gateway, caller.owner)
    if assistant is None:
        temperature = body.temperature
        events: AsyncGenerator[AnyEvent, None] = gateway.answering.write(
            await build_plain(body, entry.target, said, gateway)
        )
    else:
        turns = read_turns(said)
        temperature = assistant.config.temperature if body.temperature is None else body.temperature
        if entry.kind is EntryKind.ASSISTANT and body.instructions:
            turns = [("system", body.instructions), *turns]
        events = gateway.answering.answer(assistant, await gateway.library.run(read_inquiry, body, turns))
    draft = ResponseDraft(shape_frame(body, entry.name, temperature))
    writing = Writing(draft, gateway, caller.owner, items, shows_results=body.wants_results(), claim=claim)
    if body.stream:
        opening = await run_for_client(request, read_opening(events))
        gateway.metrics.first_token.labels(entry.name).observe(time.perf_counter() - request.state.started)
        stream = ResponseStream(writing, opening, events)
        return EventAnswer(stream, lambda: note_usage(gateway, caller, entry.name, draft))
    whole = await run_for_client(request, collect(writing, events, gateway.answer_timeout_s))
    note_usage(gateway, caller, entry.name, draft)
    return JSONResponse(whole)


async def answer_again(response_id: str, body: ResponseRequest, gateway: Gateway, caller: Caller) -> Response:
    """Answer with what is stored of a response, without asking the model.

    Raises:
        NotFound: It has been deleted since.
    """
    found = await gateway.archive.run(find_response, gateway.archive.engine, response_id, caller.owner)
    stored = await read_back(found, gateway, shows_results=body.wants_results())
    return EventAnswer(encode_events(replay(stored))) if body.stream else JSONResponse(stored)


def note_usage(gateway: Gateway, caller: Caller, model: str, draft: ResponseDraft) -> None:
    """Count a response's tokens."""
    told = draft.body["usage"]
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
    usage = told and {name: told[here] for name, here in names.items()}
    gateway.note_usage(caller, model, usage, draft.read_said())


@router.get("/{response_id}")
async def get_response(
    response_id: str, query: Annotated[ResponseQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Return a stored response; of what a search found, what is still there."""
    found = await gateway.archive.run(find_response, gateway.archive.engine, response_id, caller.owner)
    return await read_back(found, gateway, shows_results=RESULTS in query.include)


@router.delete("/{response_id}")
async def remove_response(response_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Remove a stored response for good."""
    await gateway.archive.run(delete_response, gateway.archive.engine, response_id, caller.owner)
    gateway.worker.wake()
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str, query: Annotated[InputItemQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List what a response was asked with."""
    found = await gateway.archive.run(find_response, gateway.archive.engine, response_id, caller.owner)
    is_rising = query.order == "asc"
    items = {item["id"]: item for item in (found.items if is_rising else reversed(found.items))}
    chosen, has_more = cut_window(list(items), Window(query.after, None, query.limit, is_rising))
    return shape_list([items[name] for name in chosen], has_more=has_more)


@dataclass(frozen=True, slots=True)
class Writing:
    """A response on its way into the draft, to the client and into the database.

    Attributes:
        draft: What is written.
        gateway: Where.
        owner: Whose it is.
        items: Its input.
        shows_results: Whether the client wants to see what was found.
        claim: What a request that comes again is told by; None where the response is not stored.
    """

    draft: ResponseDraft
    gateway: Gateway
    owner: str
    items: list[dict[str, Any]]
    shows_results: bool
    claim: Claim | None

    async def write(self, events: AsyncIterator[AnyEvent]) -> AsyncGenerator[Event, None]:
        """Write an answer, and keep it before its end is told; yield OpenAI's events but the first two and the last."""
        references: list[dict[str, Any]] = []
        async for event in events:
            match event:
                case SearchedEvent():
                    hits, files = event.found.hits, await self._find_files(event)
                    references = [shape_reference(hit, files[hit.chunk_id]) for hit in hits]
                    results = [shape_result(hit, files[hit.chunk_id]) for hit in hits] if self.shows_results else None
                    parts = self.draft.add_search(event.found.query, files, results)
                case TextEvent(text):
                    parts = self.draft.add_text(text)
                case CitedEvent(citation):
                    parts = self.draft.add_citation(citation)
                case CallEvent():
                    parts = self.draft.add_call(event)
                case EndEvent():
                    parts = self.draft.finish(event)
            for part in parts:
                yield part
        if self.claim is not None:
            keeping = asyncio.ensure_future(self._keep(references, self.claim))
            try:
                await asyncio.shield(keeping)
            except asyncio.CancelledError:
                await keeping  # whole or not at all: a client that leaves now finds it when it asks again
                raise

    async def _find_files(self, event: SearchedEvent) -> dict[str, FoundFile]:
        """Return the file of each passage that was found, by the id of its chunk."""
        archive = self.gateway.archive
        files = await archive.run(name_hits, archive.engine, event.found.hits)
        return {hit.chunk_id: FoundFile.of(hit, files.get(hit.chunk_id)) for hit in event.found.hits}

    async def give_back(self) -> None:
        """Let a request that comes again be answered anew, unless the response has been stored."""
        if self.claim is not None:
            await self.claim.give_back()

    async def _keep(self, references: Sequence[dict[str, Any]], claim: Claim) -> None:
        """Store the response, with ids of chunks in place of what documents say."""
        body = self.draft.body
        output = [
            {**item, "results": references} if item["type"] == "file_search_call" else item for item in body["output"]
        ]
        stored = StoredResponse(body["id"], {**body, "output": output}, self.items)
        await self.gateway.archive.run(save_response, self.gateway.archive.engine, self.owner, stored)
        await claim.settle(Response(stored.id))


class ResponseStream:
    """A response as server-sent events."""

    def __init__(self, writing: Writing, opening: list[AnyEvent], rest: AsyncGenerator[AnyEvent, None]) -> None:
        """Take over an answer whose first word is there."""
        self._writing = writing
        self._opening = opening
        self._rest = rest

    async def aclose(self) -> None:
        """End the answer, and with it the engine's work on it."""
        await self._rest.aclose()
        await self._writing.give_back()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the events; a fault in the middle is a failed response and the end."""
        draft = self._writing.draft
        for event in draft.begin():
            yield encode_event(event)
        try:
            async with aclosing(self._writing.write(self._join())) as events:
                async for event in events:
                    yield encode_event(event)
        except LoamError as error:
            logger.error("answer broken off", extra={"reason": error.message})
            yield encode_event(draft.fail(hide_folder(error.message, self._writing.gateway.archive.data.root)))
            return
        yield encode_event(draft.close())

    async def _join(self) -> AsyncIterator[AnyEvent]:
        for event in self._opening:
            yield event
        async for event in self._rest:
            yield event


async def collect(writing: Writing, events: AsyncIterator[AnyEvent], deadline_s: float) -> dict[str, Any]:
    """Wait for a whole response.

    Raises:
        EngineTimeout: It took longer than the deadline.
        LoamError: As the events raise it.
    """
    try:
        async with asyncio.timeout(deadline_s), aclosing(writing.write(events)) as parts:
            async for _part in parts:
                continue
    except TimeoutError as error:
        raise describe_silence(deadline_s) from error
    return writing.draft.body


async def encode_events(events: Iterable[Event]) -> AsyncGenerator[bytes, None]:
    """Yield events as they are sent."""
    for event in events:
        yield encode_event(event)


def encode_event(event: Event) -> bytes:
    """Return an event as it is sent."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


async def find_assistant(body: ResponseRequest, entry: Entry, gateway: Gateway, owner: str) -> Assistant | None:
    """Return who answers from documents: the assistant that was asked for, or the model with the stores of its tool.

    An assistant that is given a tool searches the tool's stores in place of its own.

    Raises:
        NotFound: A store does not exist, or is another's.
        InputError: A store has expired, or an assistant is given functions.
    """
    tool = body.find_search()
    assistant = entry.assistant
    if assistant is not None and body.list_functions():
        raise InvalidRequest("tools: an assistant takes no functions; ask its model directly.", param="tools")
    if tool is None:
        if assistant is not None and assistant.owner is not None:
            await open_stores(gateway, assistant.config.stores, assistant.owner)
        return assistant
    stores = await open_stores(gateway, tool.vector_store_ids, owner)
    if assistant is None:
        config = AssistantConfig(model=entry.target, stores=stores)
        config = config if body.instructions is None else replace(config, instructions=body.instructions)
        assistant = Assistant(entry.name, entry.target, config)
    return replace(assistant, config=narrow_search(assistant.config, stores, tool))


async def build_plain(body: ResponseRequest, model: str, said: Sequence[dict[str, Any]], gateway: Gateway) -> bytes:
    """Return the engine's request for a response without documents."""
    messages, options = read_messages(body, said), read_options(body)
    if body.truncation == "auto":
        answering, limit = gateway.answering, gateway.engine.max_model_len
        budget = limit - min(body.max_output_tokens or limit // 4, limit // 2)
        messages = await gateway.library.run(cut_messages, messages, answering.count_tokens, budget)
    return build_body(model, messages, options)


async def read_back(found: StoredResponse, gateway: Gateway, *, shows_results: bool) -> dict[str, Any]:
    """Return a stored response as OpenAI's object; of what a search found, what is still there."""
    for item in found.body["output"]:
        if item["type"] == "file_search_call":
            item["results"] = await read_results(item["results"], gateway) if shows_results else None
    return found.body


async def read_results(references: Sequence[dict[str, Any]], gateway: Gateway) -> list[dict[str, Any]]:
    """Return the results of a stored search whose passages are still there."""
    results = []
    for reference in references:
        try:
            passage = await gateway.library.read_passage(reference["chunk_id"])
        except NotFound:
            continue
        kept = {name: value for name, value in reference.items() if name != "chunk_id"}
        results.append({**kept, "text": passage.text})
    return results
