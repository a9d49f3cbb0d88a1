"""The gateway's boundary: what happens to every request and every error, whatever the route.

Request ids, the access log, the key and its quota, the bound on bodies, and the one handler that turns any error into
OpenAI's body. Knows no route.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ContractError, InputError, LoamError, NotFound, StorageFull
from core.logs import REQUEST_ID
from serve.connections import MAX_HEAD_BYTES
from serve.keys import NO_KEY, KeyRing, is_loopback

if TYPE_CHECKING:
    from serve.gateway_state import Gateway

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/docs", "/openapi.json"})
"""Answered without a key: for a load balancer, and for people who read before they have one."""

CONSOLE_PATH = "/console"
"""The page for people, answered without a key: it holds nothing, and asks with the key that is typed into it."""

NAMED_FIRST = re.compile(r"(\w+)(?::| needs) ")
"""How the fault of some fields together begins: with the name of one."""

UPLOAD_PATH = "/v1/files"
"""Bodies of POSTs here are files: they are streamed to disk, and have a limit of their own."""


class InvalidRequest(InputError):
    """A field of the request is unknown, missing, of the wrong type or out of range."""

    openai_code = "invalid_request"


class BodyTooLarge(InputError):
    """The body is larger than the gateway takes."""

    http_status = 413
    openai_code = "body_too_large"


class HeadTooLarge(InputError):
    """The headers are larger than the gateway takes."""

    http_status = 431
    openai_code = "headers_too_large"


class RequestTimeout(InputError):
    """The body did not come in time."""

    http_status = 408
    openai_code = "request_timeout"


class ForeignSite(LoamError):
    """While there is no key, only this machine may ask, and not on behalf of a page of another site."""

    http_status = 403
    openai_type = "permission_error"
    openai_code = "foreign_site"


class AdminOnly(LoamError):
    """The route is for operators, and the key is not an administrator's."""

    http_status = 403
    openai_type = "permission_error"
    openai_code = "admin_only"


class MethodNotAllowed(LoamError):
    """The path exists, but not for this method."""

    http_status = 405
    openai_type = "invalid_request_error"
    openai_code = "method_not_allowed"


class InvalidKey(LoamError):
    """The request carries no key, or a wrong one."""

    http_status = 401
    openai_type = "authentication_error"
    openai_code = "invalid_api_key"


class DoctorUnfinished(LoamError):
    """The doctor did not come to an end that could be told."""

    http_status = 503
    openai_code = "doctor_unfinished"


class InternalError(LoamError):
    """Something that we did not foresee; the log has the details under the request's id."""

    openai_code: ClassVar[str] = "internal_error"


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Turn any error into OpenAI's error answer: the one place that does.

    Args:
        request: The request that failed.
        error: What was raised.
    """
    described = describe(request, error)
    headers: dict[str, str] = {}
    if described.retry_after_s is not None:
        headers["retry-after"] = str(described.retry_after_s)
    if isinstance(described, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(
        described, StorageFull | ContractError | DoctorUnfinished
    ):  # a person must do something: the stock client shall not try again
        headers["x-should-retry"] = "false"
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    if isinstance(described, InternalError):
        logger.error("unforeseen error", exc_info=error, extra={"request_id": read_request_id(request.scope)})
    body = described.to_openai()
    body["error"]["message"] = hide_folder(described.message, request.app.state.gateway.archive.data.root)
    return JSONResponse(body, described.http_status, headers)


def hide_folder(message: str, folder: Path) -> str:
    """Return a message without the data directory: where it lies is nobody's business who asks by HTTP."""
    return message.replace(f"{folder}/", "") if folder.is_absolute() else message


def describe(request: Request, error: Exception) -> LoamError:
    """Return the error of ours that stands for any error."""
    if isinstance(error, LoamError):
        return error
    if isinstance(error, RequestValidationError):
        return describe_validation(error)
    if isinstance(error, HTTPException):
        return describe_http(request, error)
    return InternalError(
        "Something went wrong in the gateway. Its log has the details under this answer's x-request-id."
    )


def describe_http(request: Request, error: HTTPException) -> LoamError:
    """Return the error of ours that stands for one of the framework's."""
    if error.status_code == 404:
        return NotFound(f"There is no {request.method} {request.url.path} here. See docs/api.md for what there is.")
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.url.path} does not take {request.method}.")
    if error.status_code == 413:
        return BodyTooLarge(str(error.detail))
    if error.status_code == 408:
        return RequestTimeout(str(error.detail))
    return InvalidRequest(str(error.detail))


def describe_validation(error: RequestValidationError) -> InvalidRequest:
    """Return the first fault of a request as one sentence with the field's name."""
    fault: Mapping[str, Any] = error.errors()[0]
    path = [str(part) for part in fault["loc"][1:]]  # the first says where: body, query or path
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {name!r}: it is not on the list of fields that are taken.", param=name)
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {fault.get('ctx', {}).get('error', '')}.")
    if not path and fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        named = NAMED_FIRST.match(message)
        return InvalidRequest(f"{message}.", param=named[1] if named else None)
    if not path:
        return InvalidRequest(f"The body: {fault['msg']}. Send JSON with content-type application/json.")
    more = len(error.errors()) - 1
    rest = f" ({more} more fault{'s' * (more > 1)})" if more and fault["type"] != "missing" else ""
    return InvalidRequest(f"{name}: {fault['msg']}{rest}.", param=name)


def describe_too_large(limit: int) -> BodyTooLarge:
    """Return the error for a body above the limit."""
    return BodyTooLarge(
        f"The body is larger than {limit} bytes (gateway.max_body_mib, for files gateway.max_file_mib)."
    )


def is_open(path: str) -> bool:
    """Tell whether a path is answered without a key."""
    return path in OPEN_PATHS or path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


def read_request_id(scope: Scope) -> str:
    """Return the id that this request was given."""
    return str(scope.get("state", {}).get("request_id", ""))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the boundary lets through.

    Attributes:
        max_body_bytes: Largest body.
        max_upload_bytes: Largest body of an upload.
        body_timeout_s: Longest silence within a body.
    """

    max_body_bytes: int
    max_upload_bytes: int
    body_timeout_s: float = 30.0


class Boundary:
    """ASGI middleware around all routes: request id, key, quota, bounds, access log, metrics."""

    def __init__(self, app: ASGIApp, keys: KeyRing, bounds: Bounds, gateway: "Gateway") -> None:
        """Wrap an app.

        Args:
            app: The routes.
            keys: Who may ask.
            bounds: What is let through.
            gateway: Whose metrics are told of every answer, and whose quotas say how much each key may ask.
        """
        self._app = app
        self._keys = keys
        self._bounds = bounds
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        REQUEST_ID.set(request_id)
        state = scope.setdefault("state", {})
        releases: list[Callable[[], None]] = []
        state.update(request_id=request_id, releases=releases)
        state["started"] = started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    *state.get("quota_headers", ()),
                ]
            await send(message)

        self._gateway.metrics.running.inc()
        try:
            fault = self._find_fault(scope)
            if fault is not None:
                await answer_error(Request(scope), fault)(scope, receive, send_with_id)
            else:
                await self._app(scope, self._bound(scope, receive), send_with_id)
        except Exception as error:
            if status:  # the answer has begun: nothing to say any more, so close the connection
                raise
            await answer_error(Request(scope), error)(scope, receive, send_with_id)
        finally:
            for release in releases:
                release()
            self._gateway.metrics.running.dec()
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Write the access log's line and count the answer."""
        route = getattr(scope.get("route"), "path", "none")  # as it is declared: a path itself may be anything
        self._gateway.metrics.requests.labels(route, scope["method"] if route != "none" else "any", status).inc()
        self._gateway.metrics.latency.labels(route).observe(seconds)
        ms = round(seconds * 1000, 1)
        extra = {
            "request_id": read_request_id(scope),
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": ms,
        }
        extra.update(scope["state"].get("log", {}))
        logger.info("%s %s %d in %.1f ms", scope["method"], scope["path"], status, ms, extra=extra)

    def _find_fault(self, scope: Scope) -> LoamError | None:
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in raw) > MAX_HEAD_BYTES:
            return HeadTooLarge(f"The headers: wanted at most {MAX_HEAD_BYTES} bytes, found more.")
        headers = Headers(raw=raw)
        if not is_open(scope["path"]):
            fault = self._find_callers_fault(scope, headers)
            if fault is not None:
                return fault
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return InvalidRequest(f"content-length: wanted a number, found {length[:32]!r}.")
        limit = self._find_limit(scope)
        return describe_too_large(limit) if int(length) > limit else None

    def _find_callers_fault(self, scope: Scope, headers: Headers) -> LoamError | None:
        """Find out who asks, and whether there is something left of the quota."""
        caller = self._keys.identify(headers, (scope.get("client") or (None,))[0])
        if caller is None:
            return InvalidKey(NO_KEY)
        if not self._keys.has_keys and not self._is_own_site(headers):
            return ForeignSite(
                "While there is no key, the gateway answers under the names of this machine alone, and no pages of "
                "other sites. Use http://127.0.0.1, or make a key: python scripts/keys.py create --owner NAME."
            )
        state = scope["state"]
        state["caller"] = caller
        state["log"] = {"owner": caller.owner, "key": caller.key_id}
        if not self._gateway.quotas.is_limiting or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            return None
        fault = None
        try:
            self._gateway.quotas.admit(caller)
        except LoamError as error:
            fault = error
        state["quota_headers"] = [
            (name.encode(), value.encode()) for name, value in self._gateway.quotas.describe(caller).items()
        ]
        return fault

    def _is_own_site(self, headers: Headers) -> bool:
        """Tell whether a request is meant for this machine by name, and not sent by a page of another site.

        A page may give its own name this machine's address (DNS rebinding) or post a form to it; a browser then tells
        the page's name in Host, or its site in Origin.
        """
        host = read_host(headers.get("host", ""))
        own = {host, urlsplit(self._gateway.url or "").hostname}
        origin = headers.get("origin")
        is_own = is_local_name(host) or host == urlsplit(self._gateway.url or "").hostname
        return is_own and (origin is None or read_host(origin.partition("://")[2]) in own)

    def _find_limit(self, scope: Scope) -> int:
        is_upload = scope["method"] == "POST" and scope["path"] == UPLOAD_PATH
        return self._bounds.max_upload_bytes if is_upload else self._bounds.max_body_bytes

    def _bound(self, scope: Scope, receive: Receive) -> Receive:
        """Bound a body in bytes and in silence."""
        received, is_whole = 0, False
        limit = self._find_limit(scope)
        timeout_s = self._bounds.body_timeout_s

        async def receive_bounded() -> Message:
            nonlocal received, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(timeout_s):
                    message = await receive()
            except TimeoutError as error:
                text = f"The body: wanted its next bytes within {timeout_s:g} s, found none."
                raise HTTPException(408, text, {"connection": "close"}) from error
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, describe_too_large(limit).message)
            return message

        return receive_bounded


def read_host(authority: str) -> str:
    """Return the name in a Host header or behind an origin's scheme, without its port."""
    name = authority.strip().lower()
    return name.partition("]")[0].lstrip("[") if name.startswith("[") else name.partition(":")[0]


def is_local_name(name: str) -> bool:
    """Tell whether a name can only mean this machine."""
    return name == "localhost" or is_loopback(name)
