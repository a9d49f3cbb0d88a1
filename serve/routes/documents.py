"""GET /v1/loam/documents/{vector_store_id}: a vector store's files with the names that people know them by."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from serve.attached_files import AttachedFile, list_attached
from serve.gateway_state import CurrentGateway
from serve.owners import CurrentCaller
from serve.routes.files import shape_list
from serve.routes.vector_stores import find_store, read_window
from serve.schemas.vector_stores import FileListQuery

router = APIRouter(prefix="/v1/loam/documents", tags=["documents"])


@router.get("/{vector_store_id}")
async def list_documents(
    vector_store_id: str,
    query: Annotated[FileListQuery, Query()],
    gateway: CurrentGateway,
    caller: CurrentCaller,
) -> dict[str, Any]:
    """List a store's files, those of the command line among them, by name and with the reason of each failure."""
    store = await find_store(gateway, vector_store_id, caller.owner)
    archive, window = gateway.archive, read_window(query)
    files, has_more = await archive.run(list_attached, archive.engine, store, window, status=query.filter)
    return shape_list([shape_document(file) for file in files], has_more=has_more)


def shape_document(file: AttachedFile) -> dict[str, Any]:
    """Return a file as the console shows it."""
    return {
        "id": file.id,
        "object": "loam.document",
        "filename": file.document.removeprefix(f"{file.id}/"),
        "status": file.status,
        "last_error": file.error,
        "attributes": file.attributes,
        "usage_bytes": file.size_bytes,
        "created_at": file.created_at,
    }
