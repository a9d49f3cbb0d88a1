"""GET /openapi.json and /docs: what the gateway offers, for programs and as a page for people.

The page is one piece of HTML made from the description: it runs nothing and loads nothing, so that it looks the same in
a room without a network. Open without a key, like the manual that it is. docs/api.md says more in words.
"""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from serve.routes.sources import HEADERS

router = APIRouter(tags=["description"])

ABOUT = "OpenAI's interface to the models, adapters and documents of this installation. docs/api.md says more."
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_ERROR = {"description": "an error in OpenAI's shape", "content": {"application/json": {"schema": ERROR_SCHEMA}}}
ANSWERS: dict[int | str, dict[str, Any]] = {"4XX": _ERROR, "5XX": _ERROR}
"""What every route can answer besides its own."""

METHODS = ("get", "post", "delete", "put", "patch")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #ccc}"
    "details{margin:.25rem 0}summary{cursor:pointer}code{font:13px ui-monospace,monospace}"
    "table{border-collapse:collapse;margin:.5rem 0 1rem}"
    "td{text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0}"
    ".post{color:#176}.get{color:#138}.delete{color:#a32}p{margin:.3rem 0}"
    "@media(prefers-color-scheme:dark){body{background:#181a1b;color:#ddd}h2{border-color:#444}"
    ".post{color:#5cb}.get,a{color:#6bf}.delete{color:#f87}}"
)


@router.get("/openapi.json")
async def get_description(request: Request) -> JSONResponse:
    """Describe every route as OpenAPI 3.1."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", response_class=HTMLResponse)
async def get_page(request: Request) -> HTMLResponse:
    """Show the description as a page."""
    return HTMLResponse(render_page(request.app.openapi()), headers=HEADERS)


def render_page(description: dict[str, Any]) -> str:
    """Return the page.

    Args:
        description: As OpenAPI 3.1 has it.
    """
    sections: dict[str, list[str]] = {}
    for path, methods in description["paths"].items():
        for method in METHODS:
            if method in methods:
                operation = methods[method]
                shown = render_operation(method, path, operation, description)
                sections.setdefault(operation.get("tags", ["other"])[0], []).append(shown)
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in sections.items())
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(description['info'].get('description', ''))}</p>"
        f"<p>The same for programs: <a href=openapi.json>openapi.json</a></p>{body}</html>"
    )


def render_operation(method: str, path: str, operation: dict[str, Any], description: dict[str, Any]) -> str:
    """Return one operation: its first line, and behind it what it takes and answers."""
    rows = [
        (parameter["name"], parameter["in"], parameter.get("required", False), parameter.get("schema", {}))
        for parameter in operation.get("parameters", ())
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = resolve(content["schema"], description)
        where = "body" if kind == "application/json" else "form"
        required = schema.get("required", ())
        rows += [(name, where, name in required, part) for name, part in schema.get("properties", {}).items()]
    table = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{where}{', required' if is_required else ''}"
        f"<td>{escape(', '.join(describe_schema(schema, description)))}"
        for name, where, is_required, schema in rows
    )
    answers = ", ".join(f"{status} {answer['description']}" for status, answer in operation["responses"].items())
    return (
        f"<details><summary><code><b class={method}>{method.upper()}</b> {escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary><p>{escape(operation.get('description', ''))}</p>"
        f"<table>{table}</table><p>Answers: {escape(answers)}</p></details>"
    )


def resolve(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema refers to, or itself."""
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def describe_schema(schema: dict[str, Any], description: dict[str, Any]) -> Iterator[str]:
    """Yield what a value may be, in words: its type or types, its choices, its bounds, its default."""
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives:
        words = [" ".join(describe_schema(one, description)) for one in alternatives]
        yield " or ".join(dict.fromkeys(words))
    elif "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]
    elif "enum" in schema or "const" in schema:
        yield " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        yield f"list of {' '.join(describe_schema(schema.get('items', {}), description))}"
    else:
        yield str(schema.get("type", "anything"))
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "minLength": "from", "maxLength": "to",
              "minItems": "from", "maxItems": "to", "maxProperties": "to"}  # fmt: skip
    for key, word in bounds.items():
        if key in schema:
            unit = (
                "characters" if key.endswith("Length") else "of them" if key.endswith(("Items", "Properties")) else ""
            )
            bound = schema[key]
            shown = int(bound) if float(bound).is_integer() else bound
            yield f"{word} {shown} {unit}".strip()
    if schema.get("default") is not None:
        yield f"default {json.dumps(schema['default'])}"
