"""Every route knows whose request it answers, and every POST what becomes of one that comes again."""

import inspect
from typing import Any, cast

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from serve.boundary import OPEN_PATHS, is_open
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing
from serve.owners import get_caller
from serve.repeats import REPEATABLE_PATHS
from serve.schemas.strict import StrictRoute


def make_app() -> FastAPI:
    """Return a gateway's app without the gateway: only its routes are looked at."""
    return build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)


def list_routes() -> list[APIRoute]:
    """Return the gateway's routes."""
    return [route for route in make_app().routes if isinstance(route, APIRoute)]


def asks_for_caller(dependant: Dependant) -> bool:
    """Tell whether a route takes the caller, directly or below."""
    return any(part.call is get_caller or asks_for_caller(part) for part in dependant.dependencies)


def test_every_route_takes_the_caller() -> None:
    routes = list_routes()
    assert len(routes) > 4
    without = {route.path for route in routes if not asks_for_caller(route.dependant)}
    assert without == OPEN_PATHS | {"/console", "/console/{path:path}"}
    assert {route.path for route in routes if is_open(route.path)} == without


def list_calls(dependant: Dependant) -> list[Any]:
    """Return what FastAPI calls to answer a route: the route itself and all that it depends on."""
    return [dependant.call, *(call for part in dependant.dependencies for call in list_calls(part))]


def test_no_route_waits_for_a_thread_of_the_framework() -> None:
    """FastAPI gives what is no coroutine to one of 40 threads, for each request; when they are taken, health waits."""
    called = {call for route in list_routes() for call in list_calls(route.dependant)}
    assert len(called) > 40
    called |= set(make_app().exception_handlers.values())
    assert {call.__name__ for call in called if not inspect.iscoroutinefunction(call)} == set()


CLAIM_BY_THEMSELVES = {"/v1/responses", "/v1/loam/feedback"}
"""POSTs that make something and keep its id only, for a request that comes again."""
ASKED_ANEW = {
    # These make nothing.
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/vector_stores/{vector_store_id}/search",
    "/v1/loam/search",
    "/v1/loam/training_checks",
    "/v1/loam/training_estimates",
    "/v1/loam/doctor",
    # These say how something shall be: twice is once.
    "/v1/vector_stores/{vector_store_id}",
    "/v1/vector_stores/{vector_store_id}/files/{file_id}",
    "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/pause",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/resume",
    # The answer holds a key, which is kept nowhere.
    "/v1/loam/keys",
}
"""POSTs that are worked on as often as they come."""


def test_every_post_is_safe_to_repeat_or_known_to_make_nothing() -> None:
    posts = {route.path: route for route in list_routes() if "POST" in route.methods}
    assert set(posts) == REPEATABLE_PATHS | CLAIM_BY_THEMSELVES | ASKED_ANEW
    upload = "/v1/files"  # claims by itself, because its body goes to the disk
    assert all(isinstance(posts[path], StrictRoute) for path in REPEATABLE_PATHS - {upload})
