"""/v1/files: uploads, streamed to disk, and what becomes of them. An owner's own only."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from retrieval.uploads import Upload, UploadWriter, delete_upload, find_upload, list_page, open_upload
from serve.attached_files import detach_everywhere
from serve.forms import FormReader
from serve.gateway_state import ClientGone, CurrentGateway, Gateway
from serve.owners import CurrentCaller
from serve.schemas.files import FORM_FIELDS, FileListQuery, Purpose, read_file_form, refuse_table

router = APIRouter(prefix="/v1/files", tags=["files"])

WRITE_BYTES = 1 << 20
"""Collected before a thread writes them; what an upload holds in memory."""


FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(get_args(Purpose))},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
"""What the description says of the form, which is read by hand."""


@router.post(
    "", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
)
async def create_file(request: Request, gateway: CurrentGateway, caller: CurrentCaller) -> Response:
    """Keep a file; answered once it is on disk."""
    archive = gateway.archive
    reader = FormReader(request.headers.get("content-type", ""), FORM_FIELDS)
    writer = await archive.run(UploadWriter, archive.data, archive.max_file_bytes)
    try:
        await receive_file(request, reader, writer, gateway)
        form = reader.finish()
        fields = read_file_form(form.fields)
        refuse_table(fields.purpose, form.file_name or "")

        async def keep() -> Response:
            upload = await archive.run(
                writer.keep,
                archive.engine,
                owner=caller.owner,
                name=form.file_name or "",
                purpose=fields.purpose,
                lifetime_s=fields.seconds,
            )
            return JSONResponse(shape_file(upload))

        content = repr((writer.sha256, form.file_name, fields.purpose, fields.seconds)).encode()
        return await gateway.repeats.answer(request, caller.owner, content, keep)
    except ClientDisconnect as error:
        raise ClientGone from error
    finally:
        writer.discard()


async def receive_file(request: Request, reader: FormReader, writer: UploadWriter, gateway: Gateway) -> None:
    """Write the file's bytes as they come."""
    waiting = bytearray()
    async for piece in request.stream():
        waiting += reader.feed(piece)
        if len(waiting) >= WRITE_BYTES:
            await gateway.archive.run(writer.write, bytes(waiting))
            waiting.clear()
        if reader.form.fields.get("purpose"):  # refused before the rest has come
            purpose = read_file_form({"purpose": reader.form.fields["purpose"]}).purpose
            refuse_table(purpose, reader.form.file_name or "")
    await gateway.archive.run(writer.write, bytes(waiting))


@router.get("")
async def list_files(
    query: Annotated[FileListQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List an owner's files."""
    uploads, has_more = await gateway.archive.run(
        list_page,
        gateway.archive.engine,
        caller.owner,
        after=query.after,
        limit=query.limit,
        is_rising=query.order == "asc",
        purpose=query.purpose,
    )
    return shape_list([shape_file(upload) for upload in uploads], has_more=has_more)


@router.get("/{file_id}")
async def get_file(file_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Return one of them."""
    return shape_file(await gateway.archive.run(find_upload, gateway.archive.engine, file_id, caller.owner))


BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.get("/{file_id}/content", response_class=Response, responses=BYTES)
async def get_file_content(file_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> StreamingResponse:
    """Return a file's bytes."""
    upload = await gateway.archive.run(find_upload, gateway.archive.engine, file_id, caller.owner)
    file = await gateway.archive.run(open_upload, gateway.archive.data, upload)
    headers = {"content-length": str(upload.size_bytes), "x-content-type-options": "nosniff"}
    return StreamingResponse(read_pieces(file, gateway), media_type="application/octet-stream", headers=headers)


async def read_pieces(file: BinaryIO, gateway: Gateway) -> AsyncIterator[bytes]:
    """Yield an open file's bytes, and close it."""
    try:
        while piece := await gateway.archive.run(file.read, WRITE_BYTES):
            yield piece
    finally:
        await asyncio.shield(gateway.archive.run(file.close))


@router.delete("/{file_id}")
async def delete_file(file_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Remove a file for good, from every vector store, too."""
    archive = gateway.archive
    upload = await archive.run(find_upload, archive.engine, file_id, caller.owner)
    await archive.run(detach_everywhere, archive.engine, upload.id)  # first: what is cut off here can be done again
    await archive.run(delete_upload, archive.engine, archive.data, upload.id, caller.owner)
    gateway.worker.wake()
    return {"id": file_id, "object": "file", "deleted": True}


def shape_file(upload: Upload) -> dict[str, Any]:
    """Return a file as OpenAI's object."""
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.size_bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.name,
        "purpose": upload.purpose,
        "status": "processed",
        "status_details": None,
    }


def shape_list(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page as OpenAI's list."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
