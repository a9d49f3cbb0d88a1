"""/v1/vector_stores: an owner's stores, and searching them."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from retrieval.filters import parse_filter
from retrieval.ranking import AS_CONFIGURED, Ranking
from retrieval.searcher import Hit
from serve.attached_files import AttachedFile, Attachment, attach_files, find_uploads, name_hits
from serve.gateway_state import CurrentGateway, Gateway, run_for_client
from serve.owners import CurrentCaller
from serve.routes.files import shape_list
from serve.schemas.strict import StrictRoute
from serve.schemas.vector_stores import (
    ListQuery,
    RankingOptions,
    SearchRequest,
    VectorStoreCreate,
    VectorStoreUpdate,
    read_chunking,
)
from serve.scores import read_score, read_threshold
from serve.vector_stores import (
    Holdings,
    VectorStore,
    create_vector_store,
    delete_vector_store,
    find_vector_store,
    list_vector_stores,
    read_holdings,
    refuse_expired,
    touch_vector_store,
    update_vector_store,
)
from serve.windows import Window

router = APIRouter(prefix="/v1/vector_stores", tags=["vector_stores"], route_class=StrictRoute)


@router.post("")
async def create_store(body: VectorStoreCreate, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Make a store, and attach files to it."""
    archive = gateway.archive
    chunking = read_chunking(body.chunking_strategy, gateway.chunking)
    uploads = await archive.run(find_uploads, archive.engine, caller.owner, body.file_ids or [])
    identity = await gateway.library.run(gateway.library.read_identity)
    values = {
        "title": body.name,
        "description": body.description,
        "metadata": body.metadata,
        "expires_after_days": body.expires_after.days if body.expires_after else None,
        "language": gateway.language,
    }
    store = await archive.run(create_vector_store, archive.engine, identity, caller.owner, values)
    if uploads:
        attachments = [Attachment(upload, {}, chunking) for upload in uploads.values()]
        await archive.run(attach_files, archive.engine, store.id, caller.owner, attachments, is_batch=False)
        gateway.worker.wake()
    return await describe_store(gateway, store)


@router.get("")
async def list_stores(
    query: Annotated[ListQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List an owner's stores."""
    found = gateway.archive.run(list_vector_stores, gateway.archive.engine, caller.owner, read_window(query))
    stores, has_more = await found
    return shape_list([await describe_store(gateway, store) for store in stores], has_more=has_more)


@router.get("/{vector_store_id}")
async def get_store(vector_store_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Return one of them."""
    return await describe_store(gateway, await find_store(gateway, vector_store_id, caller.owner))


@router.post("/{vector_store_id}")
async def update_store(
    vector_store_id: str, body: VectorStoreUpdate, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Change its name, its metadata or its time to live."""
    changes: dict[str, Any] = {}
    if "name" in body.model_fields_set:
        changes["title"] = body.name
    if "metadata" in body.model_fields_set:
        changes["metadata"] = body.metadata
    if "expires_after" in body.model_fields_set:
        changes["expires_after_days"] = body.expires_after.days if body.expires_after else None
    archive = gateway.archive
    store = await archive.run(update_vector_store, archive.engine, vector_store_id, caller.owner, changes)
    return await describe_store(gateway, store)


@router.delete("/{vector_store_id}")
async def delete_store(vector_store_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Remove a store; the files stay."""
    await gateway.archive.run(delete_vector_store, gateway.archive.engine, vector_store_id, caller.owner)
    gateway.worker.wake()
    return {"id": vector_store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{vector_store_id}/search")
async def search_store(
    vector_store_id: str, body: SearchRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Find the passages that answer a query best."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    refuse_expired(store)
    filters = parse_filter(body.filters) if body.filters is not None else None
    ranking = read_ranking(body.ranking_options)
    best: dict[str, Hit] = {}
    for query in body.queries():
        searching = gateway.library.search([store.id], query, body.max_num_results, filters, ranking)
        for hit in (await run_for_client(request, searching)).hits:
            known = best.get(hit.chunk_id)
            if known is None or hit.score > known.score:
                best[hit.chunk_id] = hit
    archive = gateway.archive
    files = await archive.run(name_hits, archive.engine, list(best.values()))
    await archive.run(touch_vector_store, archive.engine, store)
    hits = sorted(best.values(), key=lambda hit: -hit.score)
    data = [shape_hit(hit, files[hit.chunk_id]) for hit in hits if hit.chunk_id in files][: body.max_num_results]
    return {
        "object": "vector_store.search_results.page",
        "search_query": body.queries(),
        "data": data,
        "has_more": False,
        "next_page": None,
    }


def read_ranking(options: RankingOptions | None) -> Ranking:
    """Return how a search differs from what is configured: no reranker for `none`, and OpenAI's threshold."""
    if options is None:
        return AS_CONFIGURED
    threshold = None if options.score_threshold is None else read_threshold(options.score_threshold)
    return Ranking(is_reranked=options.ranker != "none", min_score=threshold)


async def find_store(gateway: Gateway, store_id: str, owner: str) -> VectorStore:
    """Return an owner's store.

    Raises:
        NotFound: There is none, or it is another's.
    """
    return await gateway.archive.run(find_vector_store, gateway.archive.engine, store_id, owner)


async def open_stores(gateway: Gateway, store_ids: Sequence[str], owner: str) -> list[str]:
    """Return the names of an owner's stores that are about to be searched, and note that they are used.

    Raises:
        NotFound: There is none, or it is another's.
        InputError: One has expired.
    """
    archive, names = gateway.archive, []
    for store_id in dict.fromkeys(store_ids):
        store = await find_store(gateway, store_id, owner)
        refuse_expired(store)
        await archive.run(touch_vector_store, archive.engine, store)
        names.append(store.id)
    return names


def read_window(query: ListQuery) -> Window:
    """Return which part of a list a query wants."""
    return Window(query.after, query.before, query.limit, query.order == "asc")


async def describe_store(gateway: Gateway, store: VectorStore) -> dict[str, Any]:
    """Return a store as OpenAI's object, with what it holds."""
    return shape_store(store, await gateway.archive.run(read_holdings, gateway.archive.engine, store))


def shape_store(store: VectorStore, held: Holdings) -> dict[str, Any]:
    """Return a store as OpenAI's object."""
    status = "expired" if store.is_expired else "in_progress" if held.counts["in_progress"] else "completed"
    days = store.expires_after_days
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created_at,
        "name": store.title,
        "status": status,
        "usage_bytes": held.usage_bytes,
        "file_counts": shape_counts(held.counts),
        "last_active_at": store.last_active_at,
        "expires_after": None if days is None else {"anchor": "last_active_at", "days": days},
        "expires_at": store.expires_at,
        "metadata": store.metadata,
    }


def shape_counts(counts: dict[str, int]) -> dict[str, int]:
    """Return how many files there are of each status, and in all."""
    return {**counts, "total": sum(counts.values())}


def shape_hit(hit: Hit, file: AttachedFile) -> dict[str, Any]:
    """Return a passage as OpenAI's search result."""
    return {
        "file_id": file.id,
        "filename": hit.file.removeprefix(f"{file.id}/"),
        "score": read_score(hit),
        "attributes": file.attributes,
        "content": [{"type": "text", "text": hit.text}],
    }
