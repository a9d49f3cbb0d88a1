"""/v1/vector_stores/{id}/files and file_batches: what is in a store, and how it gets there."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from serve.attached_files import (
    AttachedFile,
    Attachment,
    FileBatch,
    attach_files,
    cancel_batch,
    detach_file,
    find_attached,
    find_batch,
    find_uploads,
    list_attached,
    read_content,
    set_file_attributes,
)
from serve.gateway_state import CurrentGateway, Gateway
from serve.owners import CurrentCaller
from serve.routes.files import shape_list
from serve.routes.vector_stores import find_store, read_window, shape_counts
from serve.schemas.strict import StrictRoute
from serve.schemas.vector_stores import AttributesUpdate, BatchCreate, FileAttach, FileListQuery, read_chunking
from serve.vector_stores import VectorStore, refuse_expired

router = APIRouter(prefix="/v1/vector_stores/{vector_store_id}", tags=["vector_stores"], route_class=StrictRoute)

POLL_HEADERS = {"openai-poll-after-ms": "250"}
"""When the stock client's polling helpers ask again; of themselves they wait a second, most files here take less."""


@router.post("/files")
async def attach_file(
    vector_store_id: str, body: FileAttach, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Put a file into a store; it can be found once its status is completed."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    await attach(gateway, store, caller.owner, [body], is_batch=False)
    return shape_file(await gateway.archive.run(find_attached, gateway.archive.engine, store, body.file_id), store)


@router.get("/files")
async def list_files(
    vector_store_id: str,
    query: Annotated[FileListQuery, Query()],
    gateway: CurrentGateway,
    caller: CurrentCaller,
) -> dict[str, Any]:
    """List a store's files."""
    return await list_some(gateway, await find_store(gateway, vector_store_id, caller.owner), query)


@router.get("/files/{file_id}")
async def get_file(
    vector_store_id: str, file_id: str, response: Response, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Return one of them."""
    response.headers.update(POLL_HEADERS)
    store = await find_store(gateway, vector_store_id, caller.owner)
    return shape_file(await gateway.archive.run(find_attached, gateway.archive.engine, store, file_id), store)


@router.post("/files/{file_id}")
async def update_file(
    vector_store_id: str, file_id: str, body: AttributesUpdate, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Set a file's attributes."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    values = body.attributes or {}
    file = await gateway.archive.run(set_file_attributes, gateway.archive.engine, store, file_id, values)
    return shape_file(file, store)


@router.delete("/files/{file_id}")
async def delete_file(
    vector_store_id: str, file_id: str, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Take a file out of a store; the upload stays."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    await gateway.archive.run(detach_file, gateway.archive.engine, store, file_id)
    gateway.worker.wake()
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.get("/files/{file_id}/content")
async def get_file_content(
    vector_store_id: str, file_id: str, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Return the text that was read from a file."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    file = await gateway.archive.run(find_attached, gateway.archive.engine, store, file_id)
    words = await gateway.archive.run(read_content, gateway.archive.engine, file)
    data = [{"type": "text", "text": words}]
    return {"object": "vector_store.file_content.page", "data": data, "has_more": False, "next_page": None}


@router.post("/file_batches")
async def create_batch(
    vector_store_id: str, body: BatchCreate, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Put several files into a store."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    batch_id = await attach(gateway, store, caller.owner, body.list_files(), is_batch=True)
    return shape_batch(await gateway.archive.run(find_batch, gateway.archive.engine, store, batch_id or ""), store)


@router.get("/file_batches/{batch_id}")
async def get_batch(
    vector_store_id: str, batch_id: str, response: Response, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Tell how far a batch is."""
    response.headers.update(POLL_HEADERS)
    store = await find_store(gateway, vector_store_id, caller.owner)
    return shape_batch(await gateway.archive.run(find_batch, gateway.archive.engine, store, batch_id), store)


@router.post("/file_batches/{batch_id}/cancel")
async def cancel_file_batch(
    vector_store_id: str, batch_id: str, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Call off what of a batch is not done."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    return shape_batch(await gateway.archive.run(cancel_batch, gateway.archive.engine, store, batch_id), store)


@router.get("/file_batches/{batch_id}/files")
async def list_batch_files(
    vector_store_id: str,
    batch_id: str,
    query: Annotated[FileListQuery, Query()],
    gateway: CurrentGateway,
    caller: CurrentCaller,
) -> dict[str, Any]:
    """List a batch's files."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    await gateway.archive.run(find_batch, gateway.archive.engine, store, batch_id)
    return await list_some(gateway, store, query, batch_id)


async def attach(
    gateway: Gateway, store: VectorStore, owner: str, files: Sequence[FileAttach], *, is_batch: bool
) -> str | None:
    """Put files into the worker's queue and wake it; return the batch's id where they are one."""
    refuse_expired(store)
    archive = gateway.archive
    uploads = await archive.run(find_uploads, archive.engine, owner, [file.file_id for file in files])
    wanted = {
        file.file_id: Attachment(
            uploads[file.file_id], file.attributes or {}, read_chunking(file.chunking_strategy, gateway.chunking)
        )
        for file in files
    }
    attachments = list(wanted.values())
    batch_id = await archive.run(attach_files, archive.engine, store.id, owner, attachments, is_batch=is_batch)
    gateway.worker.wake()
    return batch_id


async def list_some(
    gateway: Gateway, store: VectorStore, query: FileListQuery, batch_id: str | None = None
) -> dict[str, Any]:
    """Return one page of a store's files, or of a batch's."""
    archive, window = gateway.archive, read_window(query)
    listing = archive.run(list_attached, archive.engine, store, window, status=query.filter, batch_id=batch_id)
    files, has_more = await listing
    return shape_list([shape_file(file, store) for file in files], has_more=has_more)


def shape_file(file: AttachedFile, store: VectorStore) -> dict[str, Any]:
    """Return a store's file as OpenAI's object."""
    chunking: dict[str, Any] = {"type": "other"}
    if file.chunking is not None:
        sizes = {"max_chunk_size_tokens": file.chunking[0], "chunk_overlap_tokens": file.chunking[1]}
        chunking = {"type": "static", "static": sizes}
    return {
        "id": file.id,
        "object": "vector_store.file",
        "created_at": file.created_at,
        "vector_store_id": store.id,
        "usage_bytes": file.size_bytes,
        "status": file.status,
        "last_error": file.error,
        "attributes": file.attributes,
        "chunking_strategy": chunking,
    }


def shape_batch(batch: FileBatch, store: VectorStore) -> dict[str, Any]:
    """Return a batch as OpenAI's object."""
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created_at,
        "vector_store_id": store.id,
        "status": batch.status,
        "file_counts": shape_counts(batch.counts),
    }
