"""The docs are complete: every configuration key, every route and every error is in them, and means something."""

import re
from typing import cast

import pytest
from fastapi.routing import APIRoute

from core import errors
from core.errors import LoamError
from scripts.write_configuration_docs import PAGE, SCHEMAS, render_page
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing
from tests.rules.checkout import REPO

API = REPO / "docs" / "api.md"


def list_errors() -> list[type[LoamError]]:
    """Return every class of the error tree but its root."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LoamError)]
    return [kind for kind in kinds if kind is not LoamError]


def list_routes() -> set[str]:
    """Return every route of the gateway as «METHOD /path»."""
    app = build_app(cast("Gateway", None), keys=cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
    return {f"{method} {route.path}" for route in app.routes if isinstance(route, APIRoute) for method in route.methods}


def test_every_program_is_in_the_configuration_page() -> None:
    assert set(SCHEMAS) == {path.stem for path in (REPO / "conf").glob("*.yaml")}


def test_the_configuration_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render_page(), "docs/configuration.md is behind conf/ or its dataclasses: run make docs"


def test_every_configuration_key_means_something() -> None:
    empty = re.findall(r"^\| `(\S+)` \|.*\|\s*\|$", render_page(), re.MULTILINE)
    assert empty == [], "give each key an Attributes: line in its dataclass"


def test_every_error_stands_in_the_tree_with_its_columns() -> None:
    tree = errors.__doc__ or ""
    for kind in list_errors():
        row = rf"{kind.__name__}\s+{kind.exit_code}\s+{kind.http_status}\s+{kind.openai_type}\s+{kind.openai_code}\n"
        assert re.search(row, tree), f"core/errors.py: the tree in its docstring does not show {kind.__name__} as it is"


def test_there_are_routes() -> None:
    assert {"GET /health", "GET /v1/models", "POST /v1/chat/completions"} <= list_routes()


def test_every_route_is_in_the_api_page() -> None:
    text = API.read_text()
    assert {route for route in list_routes() if route not in text} == set()


def test_the_api_page_names_no_route_that_does_not_exist() -> None:
    named = set(re.findall(r"^#+ .*?((?:GET|POST|DELETE|PUT|PATCH) /\S*?)`?$", API.read_text(), re.MULTILINE))
    assert named - list_routes() == set()


@pytest.mark.parametrize("kind", list_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_api_page(kind: type[LoamError]) -> None:
    rows = [line for line in API.read_text().splitlines() if f"`{kind.openai_code}`" in line]
    assert any(str(kind.http_status) in row for row in rows), f"wanted `{kind.openai_code}` with {kind.http_status}"
