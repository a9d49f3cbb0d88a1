"""POST /v1/chat/completions: base models and adapters, relayed from vLLM byte for byte."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.gateway_state import CurrentGateway, run_for_client
from serve.relay import EventStream, fetch, open_stream
from serve.schemas.chat import ChatRequest
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/chat", tags=["chat"], route_class=StrictRoute)

UPSTREAM_PATH = "/v1/chat/completions"


class EventAnswer(StreamingResponse):
    """A stream of events that closes its source however it ends, even before it began."""

    def __init__(self, events: Any) -> None:
        """Stream from a source with `aclose`."""
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


@router.post("/completions")
async def create_chat_completion(body: ChatRequest, request: Request, gateway: CurrentGateway) -> Response:
    """Answer a chat."""
    entry = gateway.catalog.resolve_chat(body.model)
    request.state.log = {"model": entry.name, "stream": bool(body.stream)}
    payload = body.to_upstream(entry.target)
    if body.stream:
        events: EventStream = await run_for_client(
            request, open_stream(gateway.engine, UPSTREAM_PATH, payload, gateway.first_byte_timeout_s)
        )
        return EventAnswer(events)
    answer = await run_for_client(request, fetch(gateway.engine, UPSTREAM_PATH, payload, gateway.answer_timeout_s))
    return Response(answer, media_type="application/json")
