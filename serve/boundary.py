"""The gateway's boundary: what happens to every request and every error, whatever the route.

Request ids, the access log, the key, the bound on bodies, and the one handler that turns any error into OpenAI's body.
Knows no route.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import InputError, LoamError, NotFound
from serve.keys import NO_KEY, KeyRing

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key, so that a load balancer can ask."""

CONSOLE_PATH = "/console"
"""The page for people, answered without a key: it holds nothing, and asks with the key that is typed into it."""

UPLOAD_PATH = "/v1/files"
"""Bodies of POSTs here are files: they are streamed to disk, and have a limit of their own."""


class InvalidRequest(InputError):
    """A field of the request is unknown, missing, of the wrong type or out of range."""

    openai_code = "invalid_request"


class BodyTooLarge(InputError):
    """The body is larger than the gateway takes."""

    http_status = 413
    openai_code = "body_too_large"


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
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    if isinstance(described, InternalError):
        logger.error("unforeseen error", exc_info=error, extra={"request_id": read_request_id(request.scope)})
    return JSONResponse(described.to_openai(), described.http_status, headers)


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
    return InvalidRequest(str(error.detail))


def describe_validation(error: RequestValidationError) -> InvalidRequest:
    """Return the first fault of a request as one sentence with the field's name."""
    fault: Mapping[str, Any] = error.errors()[0]
    path = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {name!r}: it is not on the list of fields that are taken.", param=name)
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {fault.get('ctx', {}).get('error', '')}.")
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


class Boundary:
    """ASGI middleware around all routes: request id, key, bound on the body, access log."""

    def __init__(self, app: ASGIApp, keys: KeyRing, max_body_bytes: int, max_upload_bytes: int) -> None:
        """Wrap an app.

        Args:
            app: The routes.
            keys: Who may ask.
            max_body_bytes: Largest body taken.
            max_upload_bytes: Largest body of an upload.
        """
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        releases: list[Callable[[], None]] = []
        scope.setdefault("state", {}).update(request_id=request_id, releases=releases)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

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
            ms = round((time.perf_counter() - started) * 1000, 1)
            extra = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": ms,
            }
            extra.update(scope["state"].get("log", {}))
            logger.info("%s %s %d in %.1f ms", scope["method"], scope["path"], status, ms, extra=extra)

    def _find_fault(self, scope: Scope) -> LoamError | None:
        headers = Headers(scope=scope)
        if not is_open(scope["path"]):
            caller = self._keys.identify(headers, (scope.get("client") or (None,))[0])
            if caller is None:
                return InvalidKey(NO_KEY)
            scope["state"]["caller"] = caller
            scope["state"]["log"] = {"owner": caller.owner, "key": caller.key_id}
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return InvalidRequest(f"content-length: wanted a number, found {length[:32]!r}.")
        limit = self._find_limit(scope)
        return describe_too_large(limit) if int(length) > limit else None

    def _find_limit(self, scope: Scope) -> int:
        is_upload = scope["method"] == "POST" and scope["path"] == UPLOAD_PATH
        return self._max_upload_bytes if is_upload else self._max_body_bytes

    def _bound(self, scope: Scope, receive: Receive) -> Receive:
        """Count a body that did not tell its length."""
        if any(name == b"content-length" for name, _ in scope["headers"]):
            return receive
        received = 0
        limit = self._find_limit(scope)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, describe_too_large(limit).message)
            return message

        return receive_counted
