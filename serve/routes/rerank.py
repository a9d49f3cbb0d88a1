"""POST /v1/rerank: texts ordered by the configured cross-encoder, in the shape of Jina's and Cohere's APIs."""

from typing import Any

from fastapi import APIRouter, Request

from core.errors import ModelNotFound
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, run_for_client
from serve.owners import CurrentCaller
from serve.response_draft import make_id
from serve.schemas.rerank import RerankRequest
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/rerank", tags=["rerank"], route_class=StrictRoute)

NO_RERANKER = (
    "Nothing here reranks. Name a cross-encoder under models/ when the gateway is started: search.reranker=NAME"
)


@router.post("")
async def create_reranking(
    body: RerankRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Order texts by how likely they answer a query, best first."""
    entry = gateway.catalog.get(body.model, caller.owner)
    if entry.kind is not EntryKind.RERANKER:
        rerankers = [one.name for one in gateway.catalog.list_entries(caller.owner) if one.kind is EntryKind.RERANKER]
        hint = f"This one does: {rerankers[0]}." if rerankers else NO_RERANKER
        raise ModelNotFound(f"The model {body.model!r} does not rerank texts. {hint}", param="model")
    texts = body.texts()
    scores, tokens = await run_for_client(request, gateway.library.rerank(body.query, texts))
    best = sorted(range(len(texts)), key=lambda place: -scores[place])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": place, "relevance_score": float(scores[place])} for place in best]
    if body.return_documents is not False:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    return {"id": make_id("rerank"), "model": entry.name, "results": results, "usage": {"total_tokens": tokens}}
