"""POST /v1/completions: OpenAI's older call, a text that goes on; relayed from vLLM byte for byte, as chats are."""

from fastapi import APIRouter, Request, Response

from core.errors import ModelNotFound
from serve.gateway_state import CurrentGateway, take_model
from serve.owners import CurrentCaller
from serve.routes.chat import relay_answer
from serve.schemas.completions import CompletionRequest
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/completions", tags=["completions"], route_class=StrictRoute)

UPSTREAM_PATH = "/v1/completions"


@router.post("", responses={200: {"content": {"text/event-stream": {}}}})
async def create_completion(
    body: CompletionRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Go on from a text."""
    entry = take_model(request, gateway, body.model, caller.owner)
    request.state.log |= {"model": entry.name, "stream": bool(body.stream)}
    if entry.assistant is not None:
        raise ModelNotFound(
            f"The model {body.model!r} answers questions from documents and does not go on from a text. Ask it through "
            "/v1/chat/completions or /v1/responses.",
            param="model",
        )
    return await relay_answer(UPSTREAM_PATH, entry, body, request, gateway, caller)
