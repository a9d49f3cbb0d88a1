"""GET /console: the page for people, as static files.

They hold nothing of anybody's, so they are answered without a key; what they show they fetch from the API with the key
that the person types in. Knows no file by name and nothing of what they show.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from core.errors import NotFound

router = APIRouter(tags=["console"], include_in_schema=False)  # a client of the API, not a part of it

FOLDER = Path(__file__).resolve().parent.parent / "console"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types loam-report; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}
"""The page runs its own files only, speaks to this gateway only, and turns no text into markup or code."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page: its bytes, what they are, and a tag that changes with them."""

    content: bytes
    media_type: str
    tag: str


@functools.cache
def read_assets(folder: Path) -> dict[str, Asset]:
    """Return the page's files by name; a name that is not here is answered 404, so that none can lead elsewhere."""
    found = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = Asset(content, MEDIA_TYPES[path.suffix], tag)
    return found


@router.get("/console")
async def open_console() -> Response:
    """Lead to the folder, below which the page's own links work whatever stands before them in the URL."""
    return RedirectResponse("console/")


@router.get("/console/{path:path}")
async def get_asset(path: str, request: Request) -> Response:
    """Return one file of the page; its start for the folder itself."""
    asset = read_assets(FOLDER).get(path or "index.html")
    if asset is None:
        raise NotFound(f"There is no /console/{path[:64]} here. The page is /console/.")
    headers = {**HEADERS, "etag": asset.tag}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
