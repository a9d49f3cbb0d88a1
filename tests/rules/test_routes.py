"""Every route knows whose request it answers: a new one that does not ask fails here."""

from typing import cast

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from serve.boundary import OPEN_PATHS, is_open
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing
from serve.owners import get_caller


def list_routes() -> list[APIRoute]:
    """Return the gateway's routes."""
    app = build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
    return [route for route in app.routes if isinstance(route, APIRoute)]


def asks_for_caller(dependant: Dependant) -> bool:
    """Tell whether a route takes the caller, directly or below."""
    return any(part.call is get_caller or asks_for_caller(part) for part in dependant.dependencies)


def test_every_route_takes_the_caller() -> None:
    routes = list_routes()
    assert len(routes) > 4
    without = {route.path for route in routes if not asks_for_caller(route.dependant)}
    assert without == OPEN_PATHS | {"/console", "/console/{path:path}"}
    assert {route.path for route in routes if is_open(route.path)} == without
