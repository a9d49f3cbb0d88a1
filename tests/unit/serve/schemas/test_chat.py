"""The chat schema: what reaches vLLM, and that docs/api.md says what the schema does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve.schemas.chat import IGNORED_FIELDS, ChatRequest, read_text
from serve.schemas.completions import CompletionRequest
from serve.schemas.embeddings import EmbeddingRequest

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
