"""GET /sources/{chunk_id}: the passage behind a citation, as a page for people."""

from html import escape
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse

from core.errors import NotFound
from retrieval.store import Passage
from serve.gateway_state import CurrentGateway, Gateway
from serve.owners import Caller, CurrentCaller
from serve.vector_stores import is_readable

router = APIRouter(prefix="/sources", tags=["sources"])

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""The page runs nothing and loads nothing, whatever a document holds."""
STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;color:#222}"
    "body{overflow-wrap:anywhere}h1{font-size:1.2rem;margin:0}p.where{color:#666;margin:.2rem 0 1.5rem}"
    "blockquote{white-space:pre-wrap;border-left:.25rem solid #7a9;margin:0;padding:.2rem 1rem}"
    "@media(prefers-color-scheme:dark){body{background:#181a1b;color:#ddd}p.where{color:#aaa}}"
)


@router.get("/{chunk_id}", response_class=HTMLResponse)
async def get_source(
    chunk_id: Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9_-]+$")],
    gateway: CurrentGateway,
    caller: CurrentCaller,
) -> HTMLResponse:
    """Show a passage with its document, heading and page."""
    return HTMLResponse(render_passage(await read_own_passage(chunk_id, gateway, caller)), headers=HEADERS)


async def read_own_passage(chunk_id: str, gateway: Gateway, caller: Caller) -> Passage:
    """Return a passage that the caller may read.

    Raises:
        NotFound: It is not there any more, never was, or is another's: the same words for all three.
    """
    try:
        passage = await gateway.library.read_passage(chunk_id)
    except NotFound as error:
        raise describe_missing(chunk_id) from error
    if not await may_read(passage.store, gateway, caller):
        raise describe_missing(chunk_id)
    return passage


async def may_read(store: str, gateway: Gateway, caller: Caller) -> bool:
    """Tell whether a caller may read a store's passages: its owner, and everybody who can ask an assistant over it."""
    if any(store in assistant.config.stores for assistant in gateway.answering.assistants.values()):
        return True
    return await gateway.archive.run(is_readable, gateway.archive.engine, store, caller.owner)


def describe_missing(chunk_id: str) -> NotFound:
    """Return the one error for a passage that is not there and for one that is another's."""
    return NotFound(f"chunk {chunk_id!r}: it is not there; its document may have been replaced.", param="chunk_id")


def render_passage(passage: Passage) -> str:
    """Return the page; everything that comes from a document is escaped."""
    where = [f"store {passage.store}", f"characters {passage.start} to {passage.end}"]
    if passage.page is not None:
        where.insert(1, f"page {passage.page}")
    heading = f"<p class=where>{escape(passage.heading)}</p>" if passage.heading else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(passage.file)}</title><style>{STYLE}</style>"
        f"<main><h1>{escape(passage.file)}</h1>{heading}<blockquote>{escape(passage.text)}</blockquote>"
        f"<p class=where>{escape(', '.join(where))}</p></main></html>"
    )
