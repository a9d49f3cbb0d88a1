"""What serve/ relies on in vLLM: the same checks against the fake and the real server, which keeps the fake honest."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types import Completion
from prometheus_client.parser import text_string_to_metric_families

from core.layout import DataDir
from tests.fakes.engine import BASE, fake_command, quick_config
from tests.fakes.engine_thread import EngineThread, engine_thread
from tests.fakes.vllm import UNSAID
from tests.integration.conftest import REAL_MODEL

QUESTION = {"role": "user", "content": "Name the capital of France, then count slowly from one to fifty in words."}


@dataclass(frozen=True, slots=True)
class Server:
    """A vLLM under test.

    Attributes:
        thread: Its engine.
        model: Name of its base model.
        count_running: How many requests it works on.
    """

    thread: EngineThread
    model: str
    count_running: Callable[[], int]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post JSON with the key."""
        return self.thread.request("POST", path, json=body)

    def chat(self, **body: Any) -> Any:
        """Post a chat."""
        return self.post(
            "/v1/chat/completions",
            {"model": self.model, "messages": [QUESTION], "max_tokens": 8, "temperature": 0, **body},
        )

    def events(self, **body: Any) -> list[str]:
        """Return the events of a streamed chat."""
        text = self.chat(stream=True, **body).text
        assert text.endswith("\n\n")
        return [event.removeprefix("data: ") for event in text.strip().split("\n\n")]


@pytest.fixture(scope="module", params=["fake", "real"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake, then the real one."""
    if request.param == "real":
        real: EngineThread = request.getfixturevalue("real_vllm")

        def count_real() -> int:
            found = re.search(r"^vllm:num_requests_running\{.*\} ([\d.]+)$", real.request("GET", "/metrics").text, re.M)
            return int(float(found[1])) if found else -1

        yield Server(real, REAL_MODEL, count_real)
        return
    log = tmp_path_factory.mktemp("fake") / "vllm.log"
    with engine_thread(quick_config(), lambda _engine: fake_command(), log) as fake:
        yield Server(fake, BASE, lambda: fake.request("GET", "/fake/state").json()["running"])


def test_health_is_open_and_the_rest_needs_the_key(server: Server) -> None:
    assert server.thread.request("GET", "/health", keyed=False).status_code == 200
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/load_lora_adapter")):
        assert server.thread.request(method, path, keyed=False, json={}).status_code == 401


def test_the_base_model_comes_first_with_its_context_length(server: Server) -> None:
    first = server.thread.request("GET", "/v1/models").json()["data"][0]
    assert first["id"] == server.model
    assert first["max_model_len"] == server.thread.engine.max_model_len == 4096


def test_adapters_come_and_go_by_name(server: Server, served_data: DataDir) -> None:
    name = "ft:base:local:weak:0123abcd"
    body = {"lora_name": name, "lora_path": str(served_data.run("weak") / "adapter")}
    assert server.post("/v1/load_lora_adapter", body).status_code == 200
    again = server.post("/v1/load_lora_adapter", body)
    assert again.status_code == 400
    assert "already been loaded" in again.json()["error"]["message"]
    listed = server.thread.request("GET", "/v1/models").json()["data"]
    assert [model["id"] for model in listed][1:] == [name]
    answer = server.chat(model=name)
    assert answer.status_code == 200
    assert answer.json()["model"] == name
    assert server.post("/v1/unload_lora_adapter", {"lora_name": name}).status_code == 200
    assert server.post("/v1/unload_lora_adapter", {"lora_name": name}).status_code == 404
    assert server.chat(model=name).status_code == 404


def test_an_adapter_that_is_not_there_is_refused(server: Server, served_data: DataDir) -> None:
    body = {"lora_name": "ft:x", "lora_path": str(served_data.root / "nothing")}
    answer = server.post("/v1/load_lora_adapter", body)
    assert 400 <= answer.status_code < 600
    assert answer.json()["error"]["message"]


def test_a_whole_answer_has_what_clients_read(server: Server) -> None:
    body = server.chat(max_tokens=4).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == server.model
    choice = body["choices"][0]
    assert (choice["index"], choice["message"]["role"], choice["finish_reason"]) == (0, "assistant", "length")
    assert choice["message"]["content"]
    assert set(choice["message"]) == {"role", "content", *UNSAID}  # what comes back to the gateway in the next chat
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 4


def test_a_prompt_of_token_ids_is_answered_in_token_ids(server: Server) -> None:
    body = {"model": server.model, "prompt": [504, 3575, 282], "max_tokens": 3, "temperature": 0}
    body |= {"logprobs": 1, "return_token_ids": True, "add_special_tokens": False}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"]) == 3
    assert all(isinstance(token, int) for token in choice["token_ids"])
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])
    assert choice["finish_reason"] == "length"


def test_a_text_goes_on_in_openais_shape(server: Server) -> None:
    prompts = ["One, two, three, four,", "Red, green, blue, yellow,"]
    body = {"model": server.model, "prompt": prompts, "max_tokens": 3, "temperature": 0, "logprobs": 2}
    answer = server.post("/v1/completions", body).json()
    completion = Completion.model_validate(answer, strict=True)
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice in completion.choices:
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or ()) == choice.text
    assert completion.choices[0].text != completion.choices[1].text
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 6
    echoed = server.post("/v1/completions", {**body, "echo": True, "logprobs": None}).json()["choices"]
    assert [one["text"] for one in echoed] == [
        prompt + one.text for prompt, one in zip(prompts, completion.choices, strict=True)
    ]
    several = server.post("/v1/completions", {**body, "n": 2, "temperature": 1}).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]


def test_a_streamed_text_is_events_and_then_done(server: Server) -> None:
    body = {"model": server.model, "prompt": "One, two, three, four,", "max_tokens": 3, "temperature": 0}
    whole = server.post("/v1/completions", body).json()
    text = server.post("/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}).text
    *events, done = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert sum("usage" in chunk for chunk in chunks) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]


@pytest.mark.parametrize(
    ("prompt", "message", "param"),
    [("word " * 6000, "maximum context length", "input_tokens"), ([2**31 - 1], "out of vocabulary", None)],
)
def test_a_refused_prompt_has_the_shape_that_we_translate(
    server: Server, prompt: Any, message: str, param: str | None
) -> None:
    answer = server.post("/v1/completions", {"model": server.model, "prompt": prompt, "max_tokens": 2})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert param is None or error["param"] == param


def test_a_stream_is_events_and_then_done(server: Server) -> None:
    events = server.events(max_tokens=5, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert sum("usage" in chunk for chunk in chunks) == 1  # taken out, the stream is as if nobody had asked for it
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_streamed_and_whole_say_the_same(server: Server) -> None:
    whole = server.chat().json()["choices"][0]["message"]["content"]
    chunks = [json.loads(event) for event in server.events()[:-1]]
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == whole


@pytest.mark.parametrize(
    ("status", "message", "change"),
    [
        (404, "does not exist", {"model": "nothing"}),
        (400, "maximum context length", {"messages": [{"role": "user", "content": "word " * 6000}]}),
    ],
)
def test_a_refusal_has_the_shape_that_we_translate(
    server: Server, status: int, message: str, change: dict[str, Any]
) -> None:
    answer = server.chat(**change)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert message in error["message"]


def test_metrics_are_prometheus_text(server: Server) -> None:
    families = text_string_to_metric_families(server.thread.request("GET", "/metrics").text)
    wanted = {"vllm:num_requests_running", "vllm:prompt_tokens", "vllm:time_to_first_token_seconds"}
    assert wanted <= {family.name for family in families}


def test_a_canary_generation_is_answered(server: Server) -> None:
    assert server.thread.run(server.thread.engine.server.generate_token(60.0))


def test_closing_the_connection_ends_the_work(server: Server) -> None:
    engine = server.thread.engine

    async def read_a_little() -> None:
        body = {"model": server.model, "messages": [QUESTION], "max_tokens": 2000, "stream": True, "temperature": 0}
        body["messages"] = [{"role": "user", "content": "Count from one to one thousand in words. " * 20}]
        async with engine.client.stream("POST", "/v1/chat/completions", json=body, headers=engine.headers) as answer:
            assert answer.status_code == 200
            pieces = answer.aiter_raw()  # kept: httpx closes the connection as soon as nobody holds its iterator
            assert await anext(pieces)

    server.thread.run(read_a_little())
    deadline = time.monotonic() + 10  # the whole answer takes longer
    while server.count_running() != 0:
        assert time.monotonic() < deadline, "the request still runs after its client went away"
        time.sleep(0.05)


# --- the arithmetic of adapters on the real server: serve/cpu_worker.py


@pytest.fixture(scope="module")
def loaded(real_vllm: EngineThread, served_data: DataDir) -> Iterator[EngineThread]:
    """The real server with both of its adapter slots taken."""
    for name in ("zero", "strong"):
        body = {"lora_name": name, "lora_path": str(served_data.run(name) / "adapter")}
        real_vllm.request("POST", "/v1/load_lora_adapter", json=body).raise_for_status()
    yield real_vllm
    for name in ("zero", "strong"):
        real_vllm.request("POST", "/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


def say(thread: EngineThread, model: str) -> str:
    """Return what a model says to a fixed question."""
    body = {"model": model, "messages": [QUESTION], "max_tokens": 12, "temperature": 0}
    answer = thread.request("POST", "/v1/chat/completions", json=body).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_an_adapter_changes_its_own_requests_only(loaded: EngineThread) -> None:
    base = say(loaded, REAL_MODEL)
    assert say(loaded, "zero") == base
    assert say(loaded, "strong") != base
    with ThreadPoolExecutor(4) as pool:  # in one batch: a token without an adapter must not get a neighbour's
        together = list(pool.map(lambda model: say(loaded, model), ["strong", REAL_MODEL, "zero", REAL_MODEL]))
    assert together[1] == together[2] == together[3] == base
    assert together[0] != base
