"""Strict reading of JSON bodies: what every request schema shares.

A body is parsed once, with NaN, Infinity, lone surrogates and deep nesting refused; schemas take no unknown field and
no value of another type. Does not know any field.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json

from serve.owners import read_caller
from serve.repeats import REPEATABLE_PATHS, Repeats

MAX_OPEN_JSON_BYTES = 65_536
"""Of a JSON schema or another free-form value inside a request."""


class StrictModel(BaseModel):
    """A part of a request: unknown fields and coerced types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StrictRequest(Request):
    """A request whose JSON body is read strictly."""

    async def json(self) -> Any:
        """Return the body's value.

        Raises:
            HTTPException: 400, the body is not JSON as RFC 8259 has it.
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False, cache_strings="keys")
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}.") from error


class StrictRoute(APIRoute):
    """A route that reads its requests strictly, and makes one object of one request however often it comes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, given a StrictRequest."""
        handler = super().get_route_handler()

        is_repeatable = "POST" in self.methods and self.path_format in REPEATABLE_PATHS

        async def handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if not is_repeatable:
                return await handler(strict)
            repeats: Repeats = request.app.state.gateway.repeats
            owner = read_caller(request).owner
            return await repeats.answer(request, owner, await strict.body(), lambda: handler(strict))

        return handle


def pick_by_kind(value: Any) -> str:
    """Tell a text from a list, so that a fault is named in the one that was sent."""
    return "text" if isinstance(value, str) else "list"


def check_open_json(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """Bound a free-form value that is passed on as it is.

    Raises:
        ValueError: It is larger than MAX_OPEN_JSON_BYTES, or holds what no JSON can: 1e999 is read as infinity.
    """
    if value is not None and len(to_json(value)) > MAX_OPEN_JSON_BYTES:
        raise ValueError(f"at most {MAX_OPEN_JSON_BYTES} bytes of JSON are taken here")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError("wanted numbers below 1.8e308, found one above") from error
    return value
