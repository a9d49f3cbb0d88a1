"""evaluation.judge: every wrong setting is named at once."""

from typing import Any

import pytest

from core.errors import ConfigError
from evaluation.judge import JudgeConfig
from evaluation.structured import Asking


def test_every_setting_out_of_range_is_named() -> None:
    wrong: dict[str, Any] = {
        "url": "x",
        "embedder_url": "http://x/v1",
        "metrics": ["bleu"],
        "limit": 0,
        "controls": -1,
        "max_tokens": 1,
        "temperature": 3.0,
        "timeout_s": 0.0,
        "retries": 99,
        "concurrency": 0,
    }
    with pytest.raises(ConfigError) as refusal:
        JudgeConfig(**wrong)
    for key in {"embedder", *wrong} - {"embedder_url"}:
        assert f"judge.{key}: wanted" in refusal.value.message


def test_a_judge_is_asked_as_it_is_configured() -> None:
    config = JudgeConfig(max_tokens=99, temperature=0.5, timeout_s=7, retries=1, concurrency=3)
    assert config.to_asking() == Asking(99, 0.5, 7, 1, 3)
