"""Requests that no client sends by accident: what each of them tries is its name. Promise H4 of the gateway."""

import json
from dataclasses import dataclass, field

DEEP = 100_000
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
STORES = "/v1/vector_stores"
FILES = "/v1/files"
DOCTOR = "/v1/loam/doctor"
JSON = "application/json"
MESSAGES = '"messages": [{"role": "user", "content": "x"}]'


@dataclass(frozen=True, slots=True)
class HostileRequest:
    """One request.

    Attributes:
        name: What it tries.
        method: HTTP's.
        path: With its query.
        body: Raw bytes.
        headers: Besides what the client sets.
    """

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": JSON})


def _chat(name: str, rest: str) -> HostileRequest:
    return HostileRequest(name, "POST", CHAT, f'{{"model": "tiny-base", {MESSAGES}, {rest}}}'.encode())


def _raw(name: str, body: bytes, path: str = CHAT) -> HostileRequest:
    return HostileRequest(name, "POST", path, body)


def _get(name: str, path: str) -> HostileRequest:
    return HostileRequest(name, "GET", path, headers={})


def _nest(opening: str, closing: str, depth: int = DEEP) -> bytes:
    return f'{{"model": "tiny-base", "messages": {opening * depth}{closing * depth}}}'.encode()


def _form(name: str, body: bytes, kind: str = "multipart/form-data; boundary=b") -> HostileRequest:
    return HostileRequest(name, "POST", FILES, body, {"content-type": kind})


SCHEMA = '"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": %s}}'
PART = b'--b\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'

HOSTILE_REQUESTS = [
    # JSON that is none, or hardly
    _raw("nothing", b""),
    _raw("NUL bytes", b"\x00" * 64),
    _raw("a byte order mark", b'\xef\xbb\xbf{"model": "tiny-base"}'),
    _raw("UTF-16", '{"model": "tiny-base"}'.encode("utf-16")),
    _raw("bad UTF-8", b'{"model": "\xff\xfe"}'),
    _raw("overlong UTF-8", b'{"model": "\xc0\xaf"}'),
    _raw("a lone surrogate", b'{"model": "\\ud800", "messages": []}'),
    _raw("surrogates the wrong way round", b'{"model": "\\udc00\\ud800", "messages": []}'),
    _raw("an escaped NUL", b'{"model": "a\\u0000b", "messages": [{"role": "user", "content": "\\u0000"}]}'),
    _raw("NaN", b'{"model": "tiny-base", "temperature": NaN}'),
    _raw("Infinity", b'{"model": "tiny-base", "temperature": -Infinity}'),
    _raw("a number with an endless exponent", b'{"model": "tiny-base", "temperature": 1e99999}'),
    _raw("a number of 100,000 digits", b'{"model": "tiny-base", "seed": ' + b"9" * 100_000 + b"}"),
    _raw("deep lists", _nest("[", "]")),
    _raw("deep objects", _nest('{"a":', "}")),
    _raw("deep and never closed", b"[" * DEEP),
    _raw("a comment", b'{"model": "tiny-base" /* hello */}'),
    _raw("two values", b"{}{}"),
    _raw("a list", b"[]"),
    _raw("a text", b'"text"'),
    _raw("null", b"null"),
    _raw("a field twice", f'{{"model": "tiny-base", "model": "other", {MESSAGES}}}'.encode()),
    _raw("100,000 fields", json.dumps({f"f{number}": 1 for number in range(100_000)}).encode()),
    _raw("a name of 1 MB", json.dumps({"x" * 2**20: 1}).encode()[:1_000_000]),
    HostileRequest("another content type", "POST", CHAT, b"{}", {"content-type": "text/plain"}),
    HostileRequest("a content type that is none", "POST", CHAT, b"{}", {"content-type": ";;;=\t"}),
    HostileRequest("a charset of its own", "POST", CHAT, b"{}", {"content-type": f"{JSON}; charset=utf-7"}),
    HostileRequest("a compressed body", "POST", CHAT, b"\x1f\x8b", {"content-type": JSON, "content-encoding": "gzip"}),
    # chats
    _chat("a seed of 2^63", '"seed": 9223372036854775808'),
    _chat("a limit of 2^63", '"max_tokens": 9223372036854775807'),
    _chat("a temperature of 1e308", '"temperature": 1e308'),
    _chat("minus zero answers", '"n": -0'),
    _chat("a stop of nothing", '"stop": [""]'),
    _chat("a bias on a token that is none", '"logit_bias": {"\\u0661": 1}'),
    _chat("a schema that is its own child", SCHEMA % '{"$ref": "#"}'),
    _chat("a schema from elsewhere", SCHEMA % '{"$ref": "http://169.254.169.254/latest"}'),
    _chat("a schema from a file", SCHEMA % '{"$ref": "file:///etc/passwd"}'),
    _chat("a pattern that never ends", SCHEMA % '{"type": "string", "pattern": "(a+)+$"}'),
    _chat("a schema of 300 levels", SCHEMA % ('{"items":' * 300 + "true" + "}" * 300)),
    _chat("a tool without a name", '"tools": [{"type": "function", "function": {"name": ""}}]'),
    _chat("a tool named by path", '"tools": [{"type": "function", "function": {"name": "../x"}}]'),
    _chat("null where objects go", '"stream_options": null, "response_format": null, "tools": null'),
    _chat("usage that is asked for by word", '"stream": true, "stream_options": {"include_usage": "yes"}'),
    HostileRequest("a model of traversal", "POST", CHAT, f'{{"model": "../../etc/passwd", {MESSAGES}}}'.encode()),
    _raw(
        "a response to nothing but an earlier search",
        b'{"model": "tiny-base", "input": [{"type": "file_search_call", "id": "", "queries": [], "status": "failed"}]}',
        "/v1/responses",
    ),
    _chat("a schema up to infinity", SCHEMA % '{"type": "number", "maximum": 1e999}'),
    _raw(
        "a function that is told back and ends at infinity",
        b'{"model": "tiny-base", "input": "x", "tools": [{"type": "function", "name": "f", "parameters": '
        b'{"type": "number", "maximum": 1e999}}]}',
        "/v1/responses",
    ),
    # embeddings, stores, files
    _raw("an embedding of token ids", b'{"model": "hash-embedder", "input": [1, 2, 3]}', EMBEDDINGS),
    _raw("an embedding of nothing", b'{"model": "hash-embedder", "input": [""]}', EMBEDDINGS),
    _raw("an embedding in -1 dimensions", b'{"model": "hash-embedder", "input": "x", "dimensions": -1}', EMBEDDINGS),
    _raw("a store with a name of NULs", b'{"name": "\\u0000\\u0000"}', STORES),
    _raw("a store of files that are none", b'{"file_ids": ["\\u0000", "../x", "%00"]}', STORES),
    _raw("metadata of 1,000 keys", json.dumps({"metadata": {str(n): "x" for n in range(1000)}}).encode(), STORES),
    _raw("an expiry in 2^63 days",
         b'{"expires_after": {"anchor": "last_active_at", "days": 9223372036854775808}}', STORES),
    _raw("a filter of 100,000 levels",
         b'{"query": "x", "filters": ' + b'{"type":"and","filters":[' * DEEP, f"{STORES}/x/search"),
    _get("a list that begins nowhere", f"{STORES}?after=%00%ff&limit=1"),
    _get("a page of 2^63", f"{FILES}?limit=9223372036854775808"),
    _get("a limit that is no number", f"{FILES}?limit=1e3"),
    _get("a parameter twice", f"{FILES}?order=asc&order=desc"),
    _get("an id of NULs", f"{FILES}/%00%00"),
    _get("an id of 8,000 characters", f"{FILES}/{'x' * 8000}"),
    _get("an id of bytes that are no text", f"{FILES}/%ff%fe"),
    _get("an encoded slash", f"{FILES}/..%2f..%2fetc%2fpasswd/content"),
    _get("a chunk by SQL", "/sources/1'%20OR%20'1'='1"),
    _raw("an examination by path", b"{}", f"{DOCTOR}?checks=../../etc/passwd"),
    _raw("an examination of nothing", b"\x00" * 64, f"{DOCTOR}?checks="),
    _raw("an examination twice", b"", f"{DOCTOR}?checks=data&checks=all"),
    _raw("an examination that would mend", b"", f"{DOCTOR}?checks=data&repair=true"),
    _form("a form without an end", PART % (b"purpose", b"", b"batch")),
    _form("a form without a boundary", b"x", "multipart/form-data"),
    _form("a boundary of 10,000 characters", b"x", f"multipart/form-data; boundary={'b' * 10_000}"),
    _form("10,000 parts", (PART % (b"purpose", b"", b"batch")) * 10_000),
    _form("a part whose head never ends", b"--b\r\n" + b"x" * 100_000),
    _form("two files", (PART % (b"file", b'; filename="a"', b"x")) * 2 + b"--b--\r\n"),
    _form("a purpose of bytes that are no text", PART % (b"purpose", b"", b"\xff\xfe") + b"--b--\r\n"),
    HostileRequest("a negative length", "POST", CHAT, b"{}", {"content-type": JSON, "content-length": "-1"}),
    HostileRequest("a key of bytes", "GET", "/v1/models", headers={"authorization": "Bearer \x7f\x01"}),
    HostileRequest("a key of 30 KB", "GET", "/v1/models", headers={"authorization": "Bearer " + "x" * 30_000}),
    HostileRequest("a method that is none", "BREW", "/v1/models", headers={}),
    HostileRequest("TRACE", "TRACE", "/v1/models", headers={"cookie": "a=b"}),
    HostileRequest("HEAD where there is none", "HEAD", CHAT, headers={}),
]  # fmt: skip
