"""An assistant's settings, and the request that goes to the engine."""

import json
from typing import Any

import pytest

from core.errors import ConfigError
from serve.answering import AssistantConfig, build_body


@pytest.mark.parametrize(
    "change",
    [
        {"stores": []},
        {"k": 0},
        {"k": 51},
        {"min_score": 1.5},
        {"nothing_found": " "},
        {"max_tokens": 0},
        {"temperature": 3},
    ],
)
def test_an_assistants_settings_have_ranges(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        AssistantConfig(**{"model": "m", "stores": ["s"], **change})


def test_the_engine_is_asked_for_a_stream_with_its_usage() -> None:
    messages = [{"role": "user", "content": "Grüße"}]
    assert json.loads(build_body("m", messages, {"temperature": 0.0, "top_p": 0.5})) == {
        "model": "m",
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 0.5,
    }
