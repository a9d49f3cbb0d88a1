"""Whose request it is: one value that the boundary finds out and every route asks for.

Does not know keys (keys.py does) nor what an owner has.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

LOCAL = "local"
"""Owner of whatever the command line makes, and of every request while there is no key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        owner: Whose objects the request may see, make and change.
        is_admin: Whether it may use the operators' routes; it sees no more of others' objects for that.
        key_id: The key that it carries; None where it carries none or LOAM_API_KEY.
    """

    owner: str
    is_admin: bool
    key_id: str | None = None


def read_caller(request: Request) -> Caller:
    """Return who asks, as the boundary found out before any route was looked for."""
    caller: Caller = request.state.caller
    return caller


async def get_caller(request: Request) -> Caller:
    """Return the same to a route. A coroutine, for what is none would wait for one of FastAPI's threads each time."""
    return read_caller(request)


CurrentCaller = Annotated[Caller, Depends(get_caller)]
"""Every route but /health takes this; tests/rules/test_routes.py sees to it."""
