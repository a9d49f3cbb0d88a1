"""The description: every route is on the page, the page runs and loads nothing, and what it says of errors is so."""

import re
from html.parser import HTMLParser
from typing import cast

from fastapi.routing import APIRoute

from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing
from serve.routes.description import render_page

APP = build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
DESCRIPTION = APP.openapi()


def test_every_route_is_described_with_its_errors() -> None:
    routes = {
        (method.lower(), route.path.replace(":path", ""))
        for route in APP.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    described = {(method, path) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert described == routes
    for methods in DESCRIPTION["paths"].values():
        for operation in methods.values():
            assert operation["description"]
            assert {"200", "4XX", "5XX"} <= set(operation["responses"])
            assert "422" not in operation["responses"]


def test_the_page_shows_every_route_and_field() -> None:
    page = render_page(DESCRIPTION)
    for path, methods in DESCRIPTION["paths"].items():
        for method in methods:
            assert f"{method.upper()}</b> {path}" in page
    for field in ("max_completion_tokens", "expires_after[seconds]", "max_num_results", "vector_store_id"):
        assert f"<code>{field}</code>" in page
    assert "from 1 , to 16" not in page
    assert re.search(r"<code>n</code><td>body<td>integer from 1 to 16 or null", page)


class Tags(HTMLParser):
    """Collects tags and where they point."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.targets: set[str | None] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.targets |= {value for name, value in attrs if name in ("src", "href", "action")}


def test_the_page_runs_and_loads_nothing() -> None:
    tags = Tags()
    tags.feed(render_page(DESCRIPTION))
    assert not tags.names & {"script", "link", "img", "iframe", "form", "object"}
    assert tags.targets == {"openapi.json"}


def test_names_are_escaped() -> None:
    operation = {"tags": ["<b>"], "description": "<script>", "responses": {"200": {"description": "<i>"}}}
    hostile = {"info": {"title": "<x>", "version": "1"}, "paths": {"/<p>": {"get": operation}}}
    page = render_page(hostile)
    assert not re.search(r"<(script|i|p>)|<x>", page.partition("</style>")[2].replace("<p>", ""))
