"""The boundary: any error becomes OpenAI's body with an id, and tells nothing of our insides."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from core.errors import ContractError, EngineUnavailable, LoamError, StorageFull
from core.layout import DataDir
from retrieval.database import open_database
from serve.archive import Archive
from serve.boundary import Boundary, Bounds, is_local_name, read_host
from serve.catalog import Catalog
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing


class BrokenCatalog(Catalog):
    """A catalogue that fails as told."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get(self, name: str, owner: str) -> Any:
        raise self._error


def make_gateway(catalog: Any, folder: Path) -> Gateway:
    """Return a gateway that has a catalogue and a data directory, and nothing else."""
    nothing = cast("Any", None)
    archive = cast("Archive", SimpleNamespace(data=DataDir(folder)))
    return Gateway(
        nothing, catalog, nothing, nothing, archive, nothing, nothing, None, 1.0, 1.0, nothing, nothing, nothing
    )


def ask(error: Exception, folder: Path) -> httpx.Response:
    gateway = make_gateway(BrokenCatalog(error), folder)
    database = open_database(folder / "loam.db")
    keys = KeyRing(database, None)
    app = build_app(gateway, keys, max_body_bytes=10, max_file_bytes=10)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.get("/v1/models/any")

    try:
        return asyncio.run(send())
    finally:
        keys.close()
        database.dispose()


def test_a_bug_is_500_without_details_but_the_log_has_them(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.ERROR):
        answer = ask(ZeroDivisionError("secret /etc/path"), tmp_path)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    record = next(record for record in caplog.records if record.message == "unforeseen error")
    assert record.__dict__["request_id"] == answer.headers["x-request-id"]
    assert "secret /etc/path" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "retry_after", "should_retry"),
    [
        (EngineUnavailable("away", retry_after_s=7), 503, "7", None),
        (StorageFull("full"), 507, None, "false"),
        (ContractError("damaged"), 500, None, "false"),
    ],
)
def test_an_error_of_ours_keeps_its_status_and_its_retry_after(
    error: LoamError, status: int, retry_after: str | None, should_retry: str | None, tmp_path: Path
) -> None:
    answer = ask(error, tmp_path)
    assert answer.status_code == status
    assert answer.json() == error.to_openai()
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers.get("x-should-retry") == should_retry


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "٣"])
def test_a_content_length_that_is_no_number_is_refused(length: str) -> None:
    sent: list[Any] = []
    nothing = cast("Any", None)

    async def run() -> None:
        gateway = make_gateway(nothing, Path("data"))
        app = SimpleNamespace(state=SimpleNamespace(gateway=gateway))
        headers = [(b"content-length", length.encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/health",
            "query_string": b"",
            "headers": headers,
            "app": app,
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await Boundary(nothing, cast("KeyRing", None), Bounds(10, 10), gateway)(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 400


@pytest.mark.parametrize(
    ("authority", "name", "is_local"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("localhost", "localhost", True),
        ("LOCALHOST:80", "localhost", True),
        ("[::1]:8000", "::1", True),
        ("127.5.5.5", "127.5.5.5", True),
        ("loam.example:8000", "loam.example", False),
        ("127.0.0.1.loam.example", "127.0.0.1.loam.example", False),
        ("192.168.0.7", "192.168.0.7", False),
        ("", "", False),
    ],
)
def test_a_name_is_this_machines_own_or_not(authority: str, name: str, is_local: bool) -> None:
    assert read_host(authority) == name
    assert is_local_name(name) is is_local
