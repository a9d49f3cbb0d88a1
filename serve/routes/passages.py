"""GET /v1/loam/passages/{chunk_id}: a passage with its document's text around it, to be read on."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from retrieval.store import parse_chunk_id
from retrieval.surroundings import read_window
from serve.gateway_state import CurrentGateway
from serve.owners import CurrentCaller
from serve.routes.sources import describe_missing, read_own_passage
from serve.schemas.search import PassageQuery

router = APIRouter(prefix="/v1/loam/passages", tags=["passages"])


@router.get("/{chunk_id}")
async def get_passage(
    chunk_id: Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9_-]+$")],
    query: Annotated[PassageQuery, Query()],
    gateway: CurrentGateway,
    caller: CurrentCaller,
) -> dict[str, Any]:
    """Return a passage, and up to `around` characters of its document on either side."""
    passage = await read_own_passage(chunk_id, gateway, caller)
    archive = gateway.archive
    window = await archive.run(read_window, archive.engine, parse_chunk_id(chunk_id), query.around)
    if window is None:
        raise describe_missing(chunk_id)
    return {
        "object": "loam.passage",
        "chunk_id": passage.chunk_id,
        "store": passage.store,
        "file": passage.file,
        "heading": passage.heading,
        "page": passage.page,
        "start": passage.start,
        "end": passage.end,
        "text": passage.text,
        "document": {
            "start": window.start,
            "end": window.start + len(window.text),
            "length": window.length,
            "text": window.text,
        },
    }
