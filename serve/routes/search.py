"""POST /v1/loam/search: a search that tells of each passage where it stands and how each stage ranked it."""

from typing import Any

from fastapi import APIRouter, Request

from retrieval.filters import parse_filter
from retrieval.searcher import Hit
from serve.attached_files import name_hits
from serve.gateway_state import CurrentGateway, run_for_client
from serve.owners import CurrentCaller
from serve.routes.vector_stores import find_store
from serve.schemas.search import StoresSearch
from serve.schemas.strict import StrictRoute
from serve.vector_stores import refuse_expired, touch_vector_store

router = APIRouter(prefix="/v1/loam/search", tags=["search"], route_class=StrictRoute)


@router.post("")
async def search_stores(
    body: StoresSearch, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Find the passages that answer a query best, in one or more of an owner's stores together."""
    archive = gateway.archive
    stores = [await find_store(gateway, store_id, caller.owner) for store_id in dict.fromkeys(body.vector_store_ids)]
    filters = parse_filter(body.filters) if body.filters is not None else None
    for store in stores:
        refuse_expired(store)
    names = [store.id for store in stores]
    searching = gateway.library.search(names, body.query, body.max_num_results, filters)
    found = await run_for_client(request, searching)
    for store in stores:
        await archive.run(touch_vector_store, archive.engine, store)
    files = await archive.run(name_hits, archive.engine, found.hits)
    hits = [hit for hit in found.hits if hit.chunk_id in files]
    return {
        "object": "loam.search_results",
        "query": found.query,
        "searched": [
            {"vector_store_id": one.store, "chunks": one.chunks, "candidates": one.candidates} for one in found.searched
        ],
        "timings_ms": found.timings_ms,
        "data": [shape_hit(n, hit, files[hit.chunk_id].id) for n, hit in enumerate(hits, start=1)],
    }


def shape_hit(n: int, hit: Hit, file_id: str) -> dict[str, Any]:
    """Return a passage with its place in the document and in each stage's ranking."""
    return {
        "n": n,
        "vector_store_id": hit.store,
        "file_id": file_id,
        "filename": hit.file.removeprefix(f"{file_id}/"),
        "heading": hit.heading,
        "page": hit.page,
        "chunk_id": hit.chunk_id,
        "start": hit.start,
        "end": hit.end,
        "text": hit.text,
        "score": round(hit.score, 4),
        "stages": hit.describe_stages(),
    }
