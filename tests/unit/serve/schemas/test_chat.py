"""The chat schema: what reaches vLLM, and that docs/api.md says what the schema does."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai.types import shared_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel, ValidationError

from serve.schemas.chat import IGNORED_FIELDS, ChatRequest, read_text
from serve.schemas.completions import CompletionRequest
from serve.schemas.embeddings import EmbeddingRequest
from serve.schemas.responses import Reasoning, ResponseRequest

API = Path(__file__).resolve().parents[4] / "docs" / "api.md"


def make_request(**change: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **change})


def read_table(heading: str) -> dict[str, str]:
    """Return «served» or «ignored» by field, as a section's table says."""
    section = API.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (served|ignored) \|", section, re.MULTILINE)
    return {name: kind for cell, kind in rows for name in re.findall(r"`([a-z_.]+)`", cell.split(" of an ")[0])}


@pytest.mark.parametrize(
    ("heading", "schema", "ignored"),
    [
        ("POST /v1/chat/completions", ChatRequest, IGNORED_FIELDS),
        ("POST /v1/completions", CompletionRequest, CompletionRequest.ignored),
        ("POST /v1/embeddings", EmbeddingRequest, frozenset({"user"})),
    ],
)
def test_the_page_says_what_the_schema_does(heading: str, schema: type[Any], ignored: frozenset[str]) -> None:
    told = read_table(heading)
    for name in schema.model_fields:
        kinds = {kind for field, kind in told.items() if field.split(".")[0] == name}
        assert ("ignored" if name in ignored else "served") in kinds, (
            f"docs/api.md: {heading} says nothing true of {name}"
        )


def test_only_what_was_set_and_served_goes_on() -> None:
    request = make_request(temperature=0, user="me", store=None, stop=None, stream=False)
    assert json.loads(request.to_upstream("base")) == {
        "model": "base",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0,
        "stream": False,
    }
    assert request.list_served_fields() == {"model", "messages", "temperature", "stream"}


def test_a_schema_keeps_its_own_nulls_and_names() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, None], "default": None}}}
    request = make_request(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    assert json.loads(request.to_upstream("m"))["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "extra": 1},
        {"role": "user"},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}},
        {"role": "tool", "content": "x"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
    ],
)
def test_messages_are_strict_too(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_request(messages=[message])


def test_parts_are_read_as_one_text() -> None:
    request = make_request(messages=[{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}])
    content = request.messages[0].content
    assert read_text(content) == "a\nb"
    assert read_text(None) == ""


def test_a_developers_instructions_are_the_systems() -> None:
    request = make_request(messages=[{"role": "developer", "content": "Short."}, {"role": "user", "content": "x"}])
    assert [one["role"] for one in json.loads(request.to_upstream("m"))["messages"]] == ["system", "user"]


def list_words(hint: Any) -> set[str]:
    """Return the words of a type of the stock client's, however deep they stand in it."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return {word for part in get_args(hint) for word in list_words(part)}


@pytest.mark.parametrize(
    ("schema", "sent", "name"),
    [
        (ChatRequest, completion_create_params.CompletionCreateParamsNonStreaming, "reasoning_effort"),
        (ChatRequest, completion_create_params.CompletionCreateParamsNonStreaming, "service_tier"),
        (ChatRequest, completion_create_params.CompletionCreateParamsNonStreaming, "verbosity"),
        (ResponseRequest, response_create_params.ResponseCreateParamsNonStreaming, "service_tier"),
        (ResponseRequest, response_create_params.ResponseCreateParamsNonStreaming, "truncation"),
        (Reasoning, shared_params.Reasoning, "effort"),
        (Reasoning, shared_params.Reasoning, "summary"),
    ],
)
def test_every_word_that_the_stock_client_knows_is_taken(schema: type[BaseModel], sent: Any, name: str) -> None:
    words = list_words(get_type_hints(sent)[name])
    assert words
    assert words <= list_words(schema.model_fields[name].annotation)
