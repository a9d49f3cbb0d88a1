"""The gateway before a fake vLLM: what is relayed, what is refused, and what a client sees when things go wrong."""

import ast
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from fastapi.routing import APIRoute

from core.logs import JsonFormatter
from serve.boundary import is_open
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing, create_key, revoke_key
from serve.schemas.chat import ChatRequest
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, EMBEDDER, PATIENCE_S, RunningGateway, running_gateway

MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here; each sets its own script."""
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(autouse=True)
def plain_script(gateway: RunningGateway) -> None:
    """Let the fake behave before each test, and let it be ready again after one that killed it."""
    gateway.wait_until_ready()


def read_error(answer: httpx.Response) -> dict[str, Any]:
    """Return an answer's error after checking that it is OpenAI's shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = body["error"]
    return error


# --- what is served


def test_models_are_listed_and_found_by_every_name(gateway: RunningGateway) -> None:
    client = gateway.client()
    assert [model.id for model in client.models.list()] == [BASE, ADAPTER, ALIAS, EMBEDDER]
    for name in (BASE, ADAPTER, ALIAS, EMBEDDER):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(("name", "target"), [(BASE, BASE), (ADAPTER, ADAPTER), (ALIAS, ADAPTER)])
def test_a_chat_reaches_the_model_that_a_name_stands_for(gateway: RunningGateway, name: str, target: str) -> None:
    answer = gateway.client().chat.completions.create(model=name, messages=[{"role": "user", "content": "a b c"}])
    assert answer.choices[0].message.content == "a b c"
    assert answer.model == target
    assert gateway.state()["requests"][-1]["model"] == target


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_relayed_byte_for_byte(gateway: RunningGateway, stream: bool) -> None:
    body = {"model": BASE, "messages": MESSAGES, "stream": stream}
    direct = gateway.run(gateway.engine.client.post("/v1/chat/completions", json=body, headers=gateway.engine.headers))
    relayed = gateway.post("/v1/chat/completions", body)
    assert relayed.content == direct.content
    assert relayed.headers["content-type"].split(";")[0] == direct.headers["content-type"].split(";")[0]


def test_served_fields_are_passed_on_and_ignored_ones_dropped(gateway: RunningGateway) -> None:
    served = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["x"], "seed": 7, "presence_penalty": 1,
        "frequency_penalty": -1, "logit_bias": {"12": 5.0}, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto", "parallel_tool_calls": False,
    }  # fmt: skip
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "reasoning_effort": "low"}
    assert gateway.chat(**served, **ignored).status_code == 200
    assert gateway.state()["requests"][-1] == {"model": BASE, "messages": MESSAGES, **served}


def test_an_earlier_answer_of_ours_is_taken_back(gateway: RunningGateway) -> None:
    earlier: dict[str, Any] = {
        "role": "assistant",
        "content": "30 days [1]",
        "refusal": None,
        "annotations": [],
        "audio": None,
    }
    assert gateway.chat(messages=[*MESSAGES, earlier, *MESSAGES]).status_code == 200
    assert gateway.state()["requests"][-1]["messages"][1] == {"role": "assistant", "content": "30 days [1]"}


# --- what is refused, and never reaches vLLM

LARGE_SCHEMA = {"name": "a", "schema": {"x": "y" * 70_000}}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("n", {"n": value}) for value in (0, 17, 2**31, 2**63, -1, 1.5, "2", True)),
    *(("max_tokens", {"max_tokens": value}) for value in (0, -1, 2**31, 2**63, "5")),
    *(("temperature", {"temperature": value}) for value in (-0.1, 2.1, 1e308, "0")),
    *(("top_p", {"top_p": value}) for value in (0, 1.1, -1)),
    *(("top_logprobs", {"logprobs": True, "top_logprobs": value}) for value in (-1, 21, 2**31)),
    *(("seed", {"seed": value}) for value in (2**63, 1.5)),
    ("stop", {"stop": ["a"] * 5}),
    ("stop", {"stop": "x" * 257}),
    ("logit_bias", {"logit_bias": {str(number): 1 for number in range(301)}}),
    ("logit_bias", {"logit_bias": {"1": 101}}),
    ("logit_bias", {"logit_bias": {"a": 1}}),
    ("messages", {"messages": []}),
    ("messages", {"messages": [{"role": "user", "content": "x"}] * 2049}),
    ("messages", {"messages": [{"role": "robot", "content": "x"}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
    ("messages", {"messages": [{"role": "user", "content": None}]}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": LARGE_SCHEMA}}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("tool_choice", {"tool_choice": "auto"}),
    ("model", {"model": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "change"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_refused(gateway: RunningGateway, param: str, change: dict[str, Any]) -> None:
    before = len(gateway.state()["requests"])
    answer = gateway.chat(**change)
    assert answer.status_code == 400
    error = read_error(answer)
    assert param in (error["param"] or "") or param in error["message"]
    assert len(gateway.state()["requests"]) == before


@pytest.mark.parametrize(
    "change",
    [{"n": 16}, {"max_tokens": 1_048_576}, {"temperature": 2}, {"top_p": 1}, {"seed": 2**63 - 1}, {"stop": ["a"] * 4},
     {"logprobs": True, "top_logprobs": 20}, {"logit_bias": {str(number): 100 for number in range(300)}},
     {"messages": [{"role": "user", "content": "x"}] * 2048}],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_the_largest_value_is_taken(gateway: RunningGateway, change: dict[str, Any]) -> None:
    assert gateway.chat(**change).status_code == 200


def list_vllm_fields() -> list[str]:
    """Return every field of a chat request that the installed vLLM knows, read from its source without importing it."""
    source = next(Path(path) for path in find_vllm_sources())
    tree = ast.parse(source.read_text())
    request = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ChatCompletionRequest"
    )
    names = [
        node.target.id for node in request.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return [name for name in names if not name.startswith("_")]


def find_vllm_sources() -> Iterator[Path]:
    """Yield the file of vLLM's chat schema, found without importing vLLM."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    yield from Path(spec.origin).parent.glob("entrypoints/openai/chat_completion/protocol.py")


def test_no_field_of_vllms_own_passes(gateway: RunningGateway) -> None:
    extras = [name for name in list_vllm_fields() if name not in ChatRequest.model_fields]
    assert len(extras) > 30
    before = len(gateway.state()["requests"])
    for name in extras:
        answer = gateway.chat(**{name: 1})
        assert answer.status_code == 400
        assert read_error(answer)["param"] == name
    assert len(gateway.state()["requests"]) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": "tiny-base", "messages": [], "temperature": NaN}',
        b'{"model": "tiny-base", "temperature": Infinity}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff\xfe"}',
        b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "tiny-base", "messages": "' + b"9" * 1000 + b'"}',
        b"\x00" * 64,
    ],
    ids=range(11),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_body_that_cannot_be_read_is_400(gateway: RunningGateway, path: str, body: bytes) -> None:
    answer = gateway.request("POST", path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert read_error(answer)["type"] == "invalid_request_error"


def test_a_body_without_its_content_type_is_400_and_says_which(gateway: RunningGateway) -> None:
    answer = gateway.request("POST", "/v1/chat/completions", content=json.dumps({"model": BASE, "messages": MESSAGES}))
    assert answer.status_code == 400
    assert "application/json" in read_error(answer)["message"]


def test_a_body_that_is_too_large_is_413(gateway: RunningGateway) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    headers = {"content-type": "application/json"}
    for content in (b" " * (2**20 + 1), pieces()):
        answer = gateway.request("POST", "/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 413
        assert read_error(answer)["code"] == "body_too_large"


VLLM_PATHS = [
    "/load", "/version", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/detokenize",
    "/ping", "/invocations", "/adapters", "/v1/messages", "/pooling", "/score",
    "/rerank", "/v2/rerank", "/v1/audio/transcriptions", "/classify", "/sleep", "/wake_up", "/reset_prefix_cache",
    "/collective_rpc", "/server_info", "/start_profile", "/redoc", "/inference/v1/generate",
    "/v1/chat/completions/batch", "/v1/chat/completions/render", "/scale_elastic_ep", "/v1/models/", "/..%2fhealth",
]  # fmt: skip


@pytest.mark.parametrize("path", VLLM_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_our_routes_exist(gateway: RunningGateway, method: str, path: str) -> None:
    answer = gateway.request(method, path, follow_redirects=False)
    assert answer.status_code in ({404, 405} if path == "/v1/models/" else {404})
    read_error(answer)


def test_another_method_is_405(gateway: RunningGateway) -> None:
    answer = gateway.request("GET", "/v1/chat/completions")
    assert answer.status_code == 405
    assert read_error(answer)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


# --- when vLLM misbehaves


@pytest.mark.parametrize("script", [{"die_after": 2}, {"break_after": 2}, {"error_after": 2}])
@pytest.mark.parametrize("model", [BASE, ALIAS])
def test_death_in_a_stream_is_one_error_event_and_never_done(
    gateway: RunningGateway, script: dict[str, int], model: str
) -> None:
    gateway.script(reply="one two three four", **script)
    events = gateway.chat(model=model, stream=True).text.strip().split("\n\n")
    assert "[DONE]" not in "".join(events)
    assert '"finish_reason": "stop"' not in "".join(events)
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert error["code"] in {"engine_unavailable", "engine_error"}
    assert sum('{"error"' in event for event in events) == 1
    words = [json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(words) == "one two"


def test_the_stock_client_sees_death_in_a_stream(gateway: RunningGateway) -> None:
    gateway.script(reply="one two three four", die_after=2)
    stream = gateway.client().chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "x"}], stream=True
    )
    with pytest.raises(openai.APIError, match="model server"):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_504_at_the_deadline(gateway: RunningGateway, stream: bool) -> None:
    gateway.script(first_delay_s=60)
    start = time.monotonic()
    with gateway.deadline(0.5):
        answer = gateway.chat(stream=stream)
    assert 0.45 < time.monotonic() - start < 60  # when the fake would answer
    assert answer.status_code == 504
    assert read_error(answer)["code"] == "engine_timeout"
    assert "within 0.5 s" in read_error(answer)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_while_vllm_is_away_it_is_503_with_retry_after_and_then_it_works_again(
    gateway: RunningGateway, stream: bool
) -> None:
    with gateway.without_restarts():
        os.kill(gateway.state()["pid"], signal.SIGKILL)
        answer = gateway.chat(stream=stream)
    assert answer.status_code == 503
    assert read_error(answer)["code"] == "engine_unavailable"
    assert int(answer.headers["retry-after"]) >= 1
    gateway.wait_until_ready()
    assert gateway.chat(model=ALIAS, stream=stream).status_code == 200


def test_health_tells_whether_vllm_is_ready(gateway: RunningGateway) -> None:
    assert gateway.request("GET", "/health").json() == {"status": "ok", "engine": "ready"}
    with gateway.without_restarts():
        os.kill(gateway.state()["pid"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while (answer := gateway.request("GET", "/health")).status_code == 200:
            assert time.monotonic() < deadline
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"


@pytest.mark.parametrize(
    ("status", "expected"), [(400, 400), (422, 400), (404, 502), (401, 502), (500, 503), (503, 503)]
)
def test_a_refusal_by_vllm_is_an_openai_error(gateway: RunningGateway, status: int, expected: int) -> None:
    gateway.script(status=status)
    answer = gateway.chat()
    assert answer.status_code == expected
    assert "vllm" not in read_error(answer)["message"].lower()


def test_a_prompt_that_is_too_long_has_openais_code(gateway: RunningGateway) -> None:
    answer = gateway.chat(messages=[{"role": "user", "content": "word " * 5000}])
    assert answer.status_code == 400
    assert read_error(answer)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("token_delay_s", [0.0, 0.2])
def test_a_client_that_goes_away_frees_vllm(gateway: RunningGateway, stream: bool, token_delay_s: float) -> None:
    first_delay_s = 0.0 if stream and token_delay_s else 2 * PATIENCE_S
    gateway.script(reply="word " * 1000, first_delay_s=first_delay_s, token_delay_s=token_delay_s)
    before = gateway.state()["aborted"]
    body = json.dumps({"model": BASE, "messages": MESSAGES, "stream": stream}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        deadline = time.monotonic() + PATIENCE_S
        while gateway.state()["running"] == 0:
            assert time.monotonic() < deadline
        if stream and token_delay_s:
            assert connection.recv(64)
    deadline = time.monotonic() + PATIENCE_S
    while gateway.state()["running"]:
        assert time.monotonic() < deadline, "the request still runs in vLLM although its client went away"
        time.sleep(0.02)
    assert gateway.state()["aborted"] == before + 1


# --- at the boundary


def test_every_answer_has_an_id_of_its_own_and_the_log_has_it(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="serve.boundary"):
        answers = [gateway.chat(), gateway.chat(n=0), gateway.request("GET", "/nothing"), gateway.chat(stream=True)]
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(ids)) == 4
        deadline = time.monotonic() + PATIENCE_S  # a line is written after the last byte of its answer has gone
        while True:
            found = [record.__dict__ for record in caplog.records if "request_id" in record.__dict__]
            logged = {line["request_id"]: line for line in found}
            if set(ids) <= set(logged) or time.monotonic() > deadline:
                break
            time.sleep(0.01)
    assert set(ids) <= set(logged)
    assert [logged[one]["status"] for one in ids] == [200, 400, 404, 200]
    assert logged[ids[0]]["model"] == BASE
    assert "hello there" not in caplog.text


def test_a_key_is_asked_for_everywhere_but_at_health(tmp_path: Path) -> None:
    with running_gateway(tmp_path, api_key="s3cret-ü") as keyed:
        assert keyed.request("GET", "/health").status_code == 200
        for path in ("/v1/models", "/sources/c1", "/nothing"):
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "s3cret"},
                {"authorization": "Bearer"},
            ):
                answer = keyed.request("GET", path, headers=headers)
                assert answer.status_code == 401
                assert read_error(answer)["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            keyed.client("wrong").models.list()
        right = {"authorization": "Bearer s3cret-ü".encode()}
        assert keyed.request("GET", "/v1/models", headers=right).status_code == 200


def test_a_revoked_key_is_refused_from_the_next_request_on_every_route(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as keyed:
        assert keyed.client("anything").models.list().data
        key, token = create_key(keyed.database, "sales")
        _, other = create_key(keyed.database, "support")
        requests = [(method, route) for method, route in list_requests() if not is_open(route)]
        assert len(requests) >= 5
        for scheme in ("Bearer", "bearer", "BEARER "):
            for method, route in requests:
                answer = keyed.request(method, route, headers={"authorization": f"{scheme} {token}"})
                assert answer.status_code != 401, (method, route)
        revoke_key(keyed.database, key.id)
        for scheme in ("Bearer", "bearer", "BEARER "):
            for method, route in requests:
                answer = keyed.request(method, route, headers={"authorization": f"{scheme} {token}"})
                assert (answer.status_code, read_error(answer)["code"]) == (401, "invalid_api_key"), (method, route)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert keyed.client(other).models.list().data


def list_requests() -> list[tuple[str, str]]:
    """Return every operation of the gateway with its path filled in."""
    app = build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return [(method, re.sub(r"{.*?}", "x", route.path)) for route in routes for method in route.methods]


def test_a_key_never_reaches_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), running_gateway(tmp_path) as keyed:
        key, token = create_key(keyed.database, "sales")
        keyed.client(token).models.list()
        with pytest.raises(openai.AuthenticationError):
            keyed.client(token + "0").models.list()
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("serve")]
    assert any(f'"owner": "sales", "key": "{key.id}"' in line for line in lines)
    assert [line for line in lines if token.rpartition("-")[2] in line] == []


def test_anothers_adapter_is_as_one_that_does_not_exist(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as keyed:
        _, token = create_key(keyed.database, "sales")
        _, mine = create_key(keyed.database, "local")
        assert [model.id for model in keyed.client(token).models.list()] == [BASE, EMBEDDER]
        assert ADAPTER in [model.id for model in keyed.client(mine).models.list()]
        headers = {"authorization": f"Bearer {token}"}
        unknown = keyed.request("GET", f"/v1/models/{'x' * len(ALIAS)}", headers=headers).text
        assert keyed.request("GET", f"/v1/models/{ALIAS}", headers=headers).text.replace(ALIAS, "x" * 4) == unknown
        for name in (ALIAS, ADAPTER):
            with pytest.raises(openai.NotFoundError) as caught:
                keyed.client(token).chat.completions.create(model=name, messages=[{"role": "user", "content": "a"}])
            assert caught.value.code == "model_not_found"
            assert f"Served here: {BASE}, {EMBEDDER}." in caught.value.message


def test_two_gateways_live_in_one_process(gateway: RunningGateway, tmp_path: Path) -> None:
    with running_gateway(tmp_path) as other:
        other.script(reply="the other")
        gateway.script(reply="the first")
        assert "the other" in other.chat().text
        assert "the first" in gateway.chat().text
        assert re.match(r"http://127\.0\.0\.1:\d+", other.url)
        assert other.url != gateway.url
