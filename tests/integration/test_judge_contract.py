"""What evaluation/ relies on in a judge's server: the same checks against the scripted judge and the real vLLM."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.fakes.engine_thread import EngineThread
from tests.fakes.judge import MODEL, scripted_judge
from tests.integration.conftest import REAL_MODEL

SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "integer", "enum": [0, 1]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module", params=["scripted", "real"])
def ask(request: pytest.FixtureRequest) -> Iterator[Post]:
    """Posts a chat that wants a verdict to the scripted judge, then to the real server."""

    def make_body(model: str, changes: dict[str, Any]) -> dict[str, Any]:
        shape = {"type": "json_schema", "json_schema": {"name": "Verdict", "schema": SCHEMA, "strict": True}}
        prompt = {"role": "user", "content": "Is the sky blue? Give verdict 1 for yes, 0 for no, as JSON."}
        body = {"model": model, "messages": [prompt], "max_tokens": 32, "temperature": 0, "response_format": shape}
        return body | changes

    if request.param == "real":
        real: EngineThread = request.getfixturevalue("real_vllm")
        yield lambda **changes: real.request("POST", "/v1/chat/completions", json=make_body(REAL_MODEL, changes))
        return
    with scripted_judge() as judge:
        judge.rules["Verdict"] = lambda _given, _prompt: {"verdict": 1}
        yield lambda **changes: httpx.post(f"{judge.url}/chat/completions", json=make_body(MODEL, changes))


def test_an_answer_follows_the_schema(ask: Post) -> None:
    body = ask().json()
    choice = body["choices"][0]
    assert json.loads(choice["message"]["content"]) in ({"verdict": 0}, {"verdict": 1})
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] > 0
    assert body["usage"]["prompt_tokens"] > 5


def test_an_answer_that_is_too_long_is_cut_and_says_so(ask: Post) -> None:
    choice = ask(max_tokens=1).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    with pytest.raises(ValueError, match=r".*"):
        json.loads(choice["message"]["content"] or "")


def test_an_unknown_model_is_refused(ask: Post) -> None:
    answer = ask(model="nobody")
    assert answer.status_code == 404
    assert "nobody" in answer.json()["error"]["message"]
