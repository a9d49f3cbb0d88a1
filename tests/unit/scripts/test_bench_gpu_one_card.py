"""A larger card as one of 24 GB: what vLLM is told, what the others are limited to, whose line is whose."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core.layout import DataDir
from scripts.bench_gpu_budget import CARD_BYTES, draw_budget
from scripts.bench_gpu_one_card import Watch, compare_with_budget, list_commands, measure_shared, shrink_engine
from scripts.bench_gpu_steps import Setting, Unavailable
from serve.card_budget import CONTEXT_BYTES, GIB


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """What the steps are given on a card of 80 GB; there is none, and none is asked for more than its size."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GIB))
    return Setting(torch.device("cuda", 0), is_small=False, data=DataDir(tmp_path), folder=tmp_path)


def test_vllm_is_told_its_share_of_the_smaller_card_as_one_of_the_larger(setting: Setting) -> None:
    budget = draw_budget()
    engine = shrink_engine(setting, budget)
    assert engine is not None
    assert engine.gpu_memory_utilization == pytest.approx(0.63 * 24 / 80)
    assert (engine.max_loras, engine.max_lora_rank, engine.max_model_len) == (8, 16, 8192)


def test_the_others_are_limited_to_their_lines_without_their_contexts(setting: Setting) -> None:
    budget = draw_budget()
    told = {name: json.loads(command[-1]) for name, command in list_commands(setting, setting.data, budget).items()}
    assert told["ingestion"]["limit"] == GIB
    assert told["training"]["limit"] == budget.shares["a training job"] - CONTEXT_BYTES
    assert sum(budget.shares.values()) + budget.engine == CARD_BYTES


def test_what_each_took_stands_beside_its_own_line(setting: Setting) -> None:
    watch = Watch(torch.device("cpu"))
    watch.marks = {"vLLM": 15 * GIB, "ingestion": 17 * GIB, "training": 20 * GIB}
    watch.most = 21 * GIB
    found = {"ingestion": {"peak": GIB // 2}, "training": {"peak": 3 * GIB}}
    figures = compare_with_budget(setting, draw_budget(), watch, found)
    assert [(figure.name, figure.value, figure.goal) for figure in figures] == [
        ("taken by vLLM, at its start", 15.0, "at most 15.12"),
        ("taken by ingestion, at its start", 2.0, "at most 2.57"),
        ("taken by training, at its start", 3.0, "at most 4.37"),
        ("most memory of tensors in ingestion", 0.5, ""),
        ("most memory of tensors in training", 3.0, ""),
        ("most of the card", 21.0, "at most 24"),
    ]


def test_a_card_that_is_no_larger_is_left_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=CARD_BYTES))
    with pytest.raises(Unavailable, match="wanted a card of more than 24 GiB"):
        measure_shared(setting)
