"""POST /v1/completions before a fake vLLM: what is relayed, what is refused, and what is seen when things go wrong."""

import ast
import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion

from serve.answering import AssistantConfig
from serve.quotas import Quotas
from serve.schemas.completions import CompletionRequest
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, EMBEDDER, PATIENCE_S, RunningGateway, running_gateway
from tests.fakes.strict_answers import check_answer

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here; each sets its own script."""
    helper = AssistantConfig(model=BASE, stores=["acme"])
    folder = tmp_path_factory.mktemp("completions")
    with running_gateway(folder, (), {"helper": helper}) as running:
        yield running


@pytest.fixture(autouse=True)
def plain_script(gateway: RunningGateway) -> None:
    """Let the fake behave before each test, and let it be ready again after one that killed it."""
    gateway.wait_until_ready()


def ask(gateway: RunningGateway, **body: Any) -> httpx.Response:
    """Post a completion to the base model, changed by `body`."""
    return gateway.post(PATH, {"model": BASE, "prompt": "hello there", **body})


def read_chunks(stream: Any) -> list[Completion]:
    """Return a stream's chunks, each checked strictly; its client's model has no word for «not ended yet»."""
    chunks: list[Completion] = list(stream)
    for chunk in chunks:
        filled = chunk.model_copy(deep=True)
        choices: list[Any] = list(filled.choices)
        for choice in choices:
            choice.finish_reason = choice.finish_reason or "stop"
        check_answer(filled, Completion)
    return chunks


# --- what is served


@pytest.mark.parametrize(("name", "target"), [(BASE, BASE), (ADAPTER, ADAPTER), (ALIAS, ADAPTER)])
def test_a_text_goes_on_by_the_model_that_a_name_stands_for(gateway: RunningGateway, name: str, target: str) -> None:
    gateway.script(reply=" one two three")
    answer = gateway.client().completions.create(model=name, prompt="count:", max_tokens=2, logprobs=1)
    check_answer(answer, Completion)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" one two", "length")
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == [" one", " two"]
    assert answer.model == target == gateway.state()["requests"][-1]["model"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 2)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [(["a b", "c"], ["a b", "c"]), ([3, 4], ["t3t4"]), ([[3], [4, 5]], ["t3", "t4t5"])],
    ids=["texts", "token ids", "lists of token ids"],
)
def test_a_prompt_comes_in_each_of_openais_forms(gateway: RunningGateway, prompt: Any, texts: list[str]) -> None:
    answer = gateway.client().completions.create(model=BASE, prompt=prompt)
    check_answer(answer, Completion)
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(texts))


def test_streamed_and_whole_say_the_same_and_usage_is_told_to_who_asked(gateway: RunningGateway) -> None:
    gateway.script(reply=" one two three")
    client, more = gateway.client(), {"model": BASE, "prompt": ["a", "b c"], "n": 2, "echo": True}
    whole: Completion = client.completions.create(**more)  # type: ignore[call-overload]
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = read_chunks(client.completions.create(**more, stream=True, **options))  # type: ignore[call-overload]
        texts = [""] * 4
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices] == ["a one two three"] * 2 + ["b c one two three"] * 2
        told = [chunk.usage for chunk in chunks if chunk.usage]
        assert told == ([whole.usage] if options else [])
        assert [choice.finish_reason for choice in chunks[-1 - bool(options)].choices] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_relayed_byte_for_byte(gateway: RunningGateway, stream: bool) -> None:
    gateway.script(reply='"usage": is a token of its own')
    body = {"model": BASE, "prompt": "hello", "stream": stream, "logprobs": 2}
    direct = gateway.run(gateway.engine.client.post(PATH, json=body, headers=gateway.engine.headers))
    relayed = gateway.post(PATH, body)
    assert relayed.content == direct.content
    assert relayed.headers["content-type"].split(";")[0] == direct.headers["content-type"].split(";")[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_called_usage_is_not_taken_for_the_usage(tmp_path: Path, stream: bool) -> None:
    with running_gateway(tmp_path) as counted:  # log-probabilities have the model's own words as names
        counted.script(reply="usage")
        text = counted.post(PATH, {"model": BASE, "prompt": "a b", "stream": stream, "logprobs": 1}).text
        assert '"usage":-0.5' in text.replace(" ", "")
        counted.wait_for_metrics(
            f'loam_tokens_total{{kind="prompt",model="{BASE}"}} 2.0',
            f'loam_tokens_total{{kind="completion",model="{BASE}"}} 1.0',
        )


def test_served_fields_are_passed_on_and_ignored_ones_dropped(gateway: RunningGateway) -> None:
    served = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["x"], "seed": 7, "presence_penalty": 1,
        "frequency_penalty": -1, "logit_bias": {"12": 5.0}, "logprobs": 5, "echo": False,
    }  # fmt: skip
    assert ask(gateway, **served, user="me", best_of=2).status_code == 200
    assert gateway.state()["requests"][-1] == {"model": BASE, "prompt": "hello there", **served}


def test_langchain_completes_texts(gateway: RunningGateway) -> None:
    from langchain_openai import OpenAI

    gateway.script(reply=" one two")
    model = OpenAI(model=BASE, base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, temperature=0)
    assert [one[0].text for one in model.generate(["a"] * 3).generations] == [" one two"] * 3
    assert "".join(model.stream("count:")) == " one two"


# --- what is refused, and never reaches vLLM

PROMPTS: list[Any] = [
    "", [], [""], None, 7, {}, [[]], [-1], [2**31], [1.5], [True], ["a", 1], [[1], "a"], [1, [2]], [["a"]],
    ["a"] * 33, [[1]] * 33,
]  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("n", {"n": value}) for value in (0, 17, 2**31, 2**63, -1, 1.5, "2", True)),
    *(("max_tokens", {"max_tokens": value}) for value in (0, -1, 2**31, 2**63, "5")),
    *(("logprobs", {"logprobs": value}) for value in (-1, 6, 2**31, True)),
    *(("best_of", {"best_of": value}) for value in (0, 2, 20, 2**31)),
    *(("temperature", {"temperature": value}) for value in (-0.1, 2.1, 1e308)),
    *(("prompt", {"prompt": value}) for value in PROMPTS),
    ("prompt", {"prompt": ["a"] * 17, "n": 2}),
    ("echo", {"echo": True, "logprobs": 0}),
    ("suffix", {"suffix": "end"}),
    ("stop", {"stop": ["a"] * 5}),
    ("logit_bias", {"logit_bias": {str(number): 1 for number in range(301)}}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("model", {"model": ""}),
]  # fmt: skip


def test_a_value_out_of_range_is_refused_at_once(gateway: RunningGateway) -> None:
    before = len(gateway.state()["requests"])
    for param, change in REFUSED:
        answer = ask(gateway, **change)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_request"), change
        assert (error["param"] or "").partition(".")[0] == param, (change, error)
    assert len(gateway.state()["requests"]) == before


@pytest.mark.parametrize(
    "change",
    [{"n": 16}, {"prompt": ["a"] * 32}, {"prompt": [[1]] * 16, "n": 2}, {"logprobs": 5}, {"n": 2, "best_of": 2},
     {"max_tokens": 1_048_576}, {"best_of": None, "logprobs": None}],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_the_largest_value_is_taken(gateway: RunningGateway, change: dict[str, Any]) -> None:
    assert ask(gateway, **change).status_code == 200


def list_vllm_fields() -> list[str]:
    """Return every field of a completion that the installed vLLM knows, read from its source without importing it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "entrypoints/openai/completion/protocol.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    (request,) = [node for node in classes if node.name == "CompletionRequest"]
    targets = [node.target for node in request.body if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name) and not target.id.startswith("_")]


def test_no_field_of_vllms_own_passes(gateway: RunningGateway) -> None:
    extras = [name for name in list_vllm_fields() if name not in CompletionRequest.model_fields]
    assert len(extras) > 30
    before = len(gateway.state()["requests"])
    for name in extras:
        answer = ask(gateway, **{name: 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert len(gateway.state()["requests"]) == before


@pytest.mark.parametrize(
    ("model", "said"), [("helper", "/v1/chat/completions"), (EMBEDDER, "embeds"), ("nothing", "does not exist")]
)
def test_what_completes_no_text_is_404_and_says_why(gateway: RunningGateway, model: str, said: str) -> None:
    with pytest.raises(openai.NotFoundError, match=said) as caught:
        gateway.client().completions.create(model=model, prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("prompt", "code"), [("word " * 5000, "context_length_exceeded"), ([2**31 - 1], "invalid_request")]
)
def test_what_vllm_refuses_names_the_prompt(gateway: RunningGateway, prompt: Any, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.client().completions.create(model=BASE, prompt=prompt)
    assert (caught.value.code, caught.value.param) == (code, "prompt")


# --- when vLLM misbehaves, or the client does


@pytest.mark.parametrize("script", [{"die_after": 2}, {"break_after": 2}, {"error_after": 2}])
def test_death_in_a_stream_is_one_error_event_and_never_done(gateway: RunningGateway, script: dict[str, int]) -> None:
    gateway.script(reply="one two three four", **script)
    events = ask(gateway, stream=True).text.strip().split("\n\n")
    assert "[DONE]" not in "".join(events)
    assert '"finish_reason": "stop"' not in "".join(events)
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events[:-1]) == "one two"


@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_504_and_absence_is_503(gateway: RunningGateway, stream: bool) -> None:
    gateway.script(first_delay_s=60)
    with gateway.deadline(0.5):
        silent = ask(gateway, stream=stream)
    assert (silent.status_code, silent.json()["error"]["code"]) == (504, "engine_timeout")
    with gateway.without_restarts():
        os.kill(gateway.state()["pid"], signal.SIGKILL)
        away = ask(gateway, stream=stream)
    assert (away.status_code, away.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(away.headers["retry-after"]) >= 1


def test_a_client_that_goes_away_frees_vllm(gateway: RunningGateway) -> None:
    gateway.script(reply="word " * 1000, token_delay_s=0.2)
    before = gateway.state()["aborted"]
    body = {"model": BASE, "prompt": "a", "stream": True, "max_tokens": 1000}
    with httpx.stream("POST", f"{gateway.url}{PATH}", json=body) as answer:
        pieces = answer.iter_bytes()  # kept: httpx closes the connection as soon as nobody holds its iterator
        assert next(pieces)
        assert gateway.state()["running"] == 1
    deadline = time.monotonic() + PATIENCE_S
    while gateway.state()["running"]:
        assert time.monotonic() < deadline, "the request still runs in vLLM although its client went away"
        time.sleep(0.02)
    assert gateway.state()["aborted"] == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_count_against_the_quota(tmp_path: Path, stream: bool) -> None:
    with running_gateway(tmp_path, quotas=Quotas(tokens_per_minute=50)) as limited:
        limited.script(reply="word " * 60)
        answers = [ask(limited, stream=stream, max_tokens=60)]
        limited.wait_for_metrics(f'loam_tokens_total{{kind="completion",model="{BASE}"}} 60.0')
        answers.append(ask(limited, stream=stream, max_tokens=60))
        assert [answer.status_code for answer in answers] == [200, 429]
        assert answers[0].headers["x-ratelimit-remaining-tokens"] == "50"
        assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"
