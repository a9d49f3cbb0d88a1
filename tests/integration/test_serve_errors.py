"""Every error reaches the stock client as the exception that OpenAI's own would be, with an id that the log has. H5."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from serve.keys import create_key
from serve.quotas import Quotas
from tests.fakes.engine import BASE
from tests.fakes.gateway import EMBEDDER, PATIENCE_S, RunningGateway, running_gateway

MESSAGES: Any = [{"role": "user", "content": "hello"}]
PICTURE: Any = {"type": "image_url", "image_url": {"url": "data:,"}}
Provoke = Callable[[RunningGateway, openai.OpenAI], object]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with keys and little room."""
    folder = tmp_path_factory.mktemp("errors")
    with running_gateway(
        folder, max_file_bytes=1000, max_body_bytes=10_000, engine_changes={"max_in_flight": 1}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client, with a good key that is no administrator's."""
    return gateway.client(create_key(gateway.database, "sales")[1])


def chat(client: openai.OpenAI, **changes: Any) -> object:
    return client.chat.completions.create(**{"model": BASE, "messages": MESSAGES, **changes})


def chat_with(script: dict[str, Any], **changes: Any) -> Provoke:
    def provoke(gateway: RunningGateway, client: openai.OpenAI) -> object:
        gateway.script(**script)
        try:
            return chat(client, **changes)
        finally:
            gateway.script()

    return provoke


def outwait(gateway: RunningGateway, client: openai.OpenAI, **changes: Any) -> object:
    with gateway.deadline(0.5):
        return chat_with({"first_delay_s": 60}, **changes)(gateway, client)


def fill_disk(gateway: RunningGateway, client: openai.OpenAI) -> object:
    with gateway.full_disk("INSERT INTO files"):
        return client.files.create(file=("a.txt", b"words"), purpose="assistants")


def ask_for_nothing(_gateway: RunningGateway, client: openai.OpenAI) -> object:
    return client.post("/vector_stores/vs_0/search", cast_to=object, body={})


def read_admin_route(_gateway: RunningGateway, client: openai.OpenAI) -> object:
    return client.get(f"{str(client.base_url)[:-4]}/metrics", cast_to=object)


ERRORS: list[tuple[str, Provoke, type[openai.APIStatusError], int, str, str | None]] = [
    ("unknown field", lambda _, c: chat(c, extra_body={"use_beam_search": True}), openai.BadRequestError, 400,
     "invalid_request", "use_beam_search"),
    ("no query", ask_for_nothing, openai.BadRequestError, 400, "invalid_request", "query"),
    ("empty query", lambda _, c: c.vector_stores.search("vs_0", query=""), openai.BadRequestError, 400,
     "invalid_request", "query.text"),
    ("token ids", lambda _, c: c.embeddings.create(model=EMBEDDER, input=[[1, 2]]), openai.BadRequestError, 400,
     "invalid_request", "input.list"),
    ("picture", lambda _, c: chat(c, messages=[{"role": "user", "content": [PICTURE]}]), openai.BadRequestError, 400,
     "invalid_request", "messages.0.user.content.list.0.type"),
    ("no prompt", lambda _, c: c.completions.create(model=BASE, prompt=None), openai.BadRequestError, 400,
     "invalid_request", "prompt.text"),
    ("full disk", fill_disk, openai.InternalServerError, 507, "storage_full", None),
    ("out of range", lambda _, c: chat(c, n=17), openai.BadRequestError, 400, "invalid_request", "n"),
    ("too long", lambda _, c: chat(c, messages=[{"role": "user", "content": "a " * 4100}]), openai.BadRequestError, 400,
     "context_length_exceeded", "messages"),
    ("refused by vLLM", chat_with({"status": 422}), openai.BadRequestError, 400, "invalid_request", None),
    ("wrong key", lambda g, _: chat(g.client("loam-x-y")), openai.AuthenticationError, 401, "invalid_api_key", None),
    ("operators' route", read_admin_route, openai.PermissionDeniedError, 403, "admin_only", None),
    ("unknown model", lambda _, c: chat(c, model="gpt-5"), openai.NotFoundError, 404, "model_not_found", "model"),
    ("embedder in a chat", lambda _, c: chat(c, model=EMBEDDER), openai.NotFoundError, 404, "model_not_found", "model"),
    ("unknown file", lambda _, c: c.files.retrieve("file-0"), openai.NotFoundError, 404, "not_found", "file_id"),
    ("unknown store", lambda _, c: c.vector_stores.retrieve("vs_0"), openai.NotFoundError, 404, "not_found",
     "vector_store_id"),
    ("unknown route", lambda _, c: c.moderations.create(input="x", model="m"), openai.NotFoundError, 404,
     "not_found", None),
    ("large body", lambda _, c: chat(c, messages=[{"role": "user", "content": "x" * 20_000}]), openai.APIStatusError,
     413, "body_too_large", None),
    ("file too large", lambda _, c: c.files.create(file=b"x" * 300_000, purpose="batch"), openai.APIStatusError, 413,
     "body_too_large", None),
    ("vLLM's 500", chat_with({"status": 500}), openai.InternalServerError, 503, "engine_unavailable", None),
    ("vLLM's 404", chat_with({"status": 404}), openai.InternalServerError, 502, "engine_error", None),
    ("silence", outwait, openai.InternalServerError, 504, "engine_timeout", None),
    ("silence before a stream", lambda g, c: outwait(g, c, stream=True), openai.InternalServerError, 504,
     "engine_timeout", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("provoke", "kind", "status", "code", "param"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_an_error_is_openais(
    gateway: RunningGateway, client: openai.OpenAI, provoke: Provoke, kind: type[openai.APIStatusError], status: int,
    code: str, param: str | None, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="serve.boundary")
    with pytest.raises(kind) as caught:
        provoke(gateway, client)
    check(caught.value, status, code, param, caplog)


def check(
    error: openai.APIStatusError, status: int, code: str, param: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert (error.status_code, error.code) == (status, code)
    body: Any = error.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    assert body["type"]
    assert param is None or body["param"] == param
    assert not re.search(r"Traceback|SELECT|sqlite|site-packages|/tmp/|File \"", error.message)
    assert error.request_id in wait_for_ids(caplog, error.request_id)
    if status in (429, 503):
        assert int(error.response.headers["retry-after"]) >= 1


def wait_for_ids(caplog: pytest.LogCaptureFixture, wanted: str | None) -> list[str]:
    """Return the ids in the log, once the wanted one is there: its line is written after the answer's last byte."""
    deadline = time.monotonic() + PATIENCE_S
    ids: list[str] = []
    while wanted not in ids and time.monotonic() < deadline:
        ids = [record.__dict__.get("request_id", "") for record in caplog.records]
    return ids


def test_no_room_is_503(gateway: RunningGateway, client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    gateway.script(reply="a b", token_delay_s=2 * PATIENCE_S)
    with client.chat.completions.create(model=BASE, messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
        caplog.set_level(logging.INFO, logger="serve.boundary")
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client)
    gateway.script()
    check(caught.value, 503, "overloaded", None, caplog)


def test_a_spent_quota_is_429(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_gateway(tmp_path, quotas=Quotas(requests_per_minute=1)) as limited:
        client = limited.client()
        chat(client)
        caplog.set_level(logging.INFO, logger="serve.boundary")
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
    check(caught.value, 429, "rate_limit_exceeded", None, caplog)


def test_ids_are_never_used_twice(gateway: RunningGateway) -> None:
    ids = [gateway.request("GET", "/v1/models").headers["x-request-id"] for _ in range(50)]
    assert len(set(ids)) == 50
