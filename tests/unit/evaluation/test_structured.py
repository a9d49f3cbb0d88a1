"""evaluation.structured: what is asked for is held to, and who stands behind a name is known."""

from typing import Any

import pytest
from pydantic import BaseModel

from core.errors import ModelNotFound
from evaluation.structured import ServedModel, choose_model, find_base, parse_reply, tighten_schema


class Part(BaseModel):
    statement: str
    verdict: int


class Whole(BaseModel):
    parts: list[Part]
    count: int


SCHEMA = tighten_schema(Whole.model_json_schema())
SERVED = [
    ServedModel("llama", "base", "llama"),
    ServedModel("ft:llama:local:mine:0123abcd", "adapter", "ft:llama:local:mine:0123abcd"),
    ServedModel("mine", "alias", "ft:llama:local:mine:0123abcd"),
    ServedModel("helper", "assistant", "mine"),
    ServedModel("minilm", "embedder", "minilm"),
]


def test_a_schema_is_tightened_all_the_way_down() -> None:
    part = SCHEMA["$defs"]["Part"]
    assert part["properties"]["verdict"]["enum"] == [0, 1]
    assert "enum" not in SCHEMA["properties"]["count"]
    assert part["additionalProperties"] is SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize("around", ["{}", "Sure:\n```json\n{}\n```", "{}\nThat is all."])
def test_text_around_an_object_is_forgiven(around: str) -> None:
    text = around.replace("{}", '{"parts": [{"statement": "a {b}", "verdict": 1}], "count": 3}')
    assert parse_reply(text, Whole, SCHEMA) == Whole(parts=[Part(statement="a {b}", verdict=1)], count=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON object"),
        ("yes", "no JSON object"),
        ("} {", "no JSON object"),
        ('{"parts": [}', "no whole JSON object"),
        ('{"parts": [], "count": "3"}', "count: '3' is not of type 'integer'"),
        ('{"parts": [{"statement": "a", "verdict": 2}], "count": 1}', "parts.0.verdict: 2 is not one of"),
        ('{"parts": []}', "'count' is a required property"),
        ('{"parts": [], "count": 1, "more": 1}', "'more' was unexpected"),
    ],
)
def test_anything_else_is_told_by_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"object|count|parts|more") as refusal:
        parse_reply(text, Whole, SCHEMA)
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["llama", "ft:llama:local:mine:0123abcd", "mine", "helper"])
def test_the_base_behind_a_name_is_found(name: str) -> None:
    assert find_base(SERVED, name) == "llama"


def test_a_name_that_nobody_knows_and_a_circle_end_somewhere() -> None:
    assert find_base([], "other") == "other"
    assert find_base([ServedModel("a", None, "b"), ServedModel("b", None, "a")], "a") in {"a", "b"}


def test_the_judge_is_named_or_the_only_one() -> None:
    assert choose_model(SERVED, None, "u", "judge.model") == "llama"
    assert choose_model(SERVED, "helper", "u", "judge.model") == "helper"
    with pytest.raises(ModelNotFound, match="wanted nobody at u, found llama"):
        choose_model(SERVED, "nobody", "u", "judge.model")
    two: list[Any] = [ServedModel("a", None, None), ServedModel("b", None, None)]
    with pytest.raises(ModelNotFound, match=r"found a, b\. Name one"):
        choose_model(two, None, "u", "judge.model")
