"""The memory estimate counts a model's parameters exactly, chooses what fits, and refuses what cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, ContractError
from train.config import Choice, QuantConfig, QuantKind
from train.memory import GIB, MemoryPlan, Shape, plan_memory, read_shape

SMOLLM2 = Shape(576, 1536, 30, 9, 3, 64, 49_152, has_tied_head=True)
LLAMA_3B = Shape(3072, 8192, 28, 24, 8, 128, 128_256, has_tied_head=True)


def plan(shape: Shape, gib: float, quant: QuantConfig | None = None, **values: Any) -> MemoryPlan:
    options = {"rank": 16, "rows": 4, "length": 2048, "value_bytes": 2, "checkpointing": Choice.auto, **values}
    return plan_memory(shape, quant or QuantConfig(), available=int(gib * GIB), **options)


def test_parameters_are_those_of_the_models() -> None:
    norms = 576 * (2 * 30 + 1)
    assert SMOLLM2.linear_parameters + SMOLLM2.embedding_parameters + norms == 134_515_008
    assert SMOLLM2.adapter_parameters(16) == 4_884_480
    norms = 3072 * (2 * 28 + 1)
    assert LLAMA_3B.linear_parameters + LLAMA_3B.embedding_parameters + norms == 3_212_749_824


def test_a_large_card_needs_no_recomputation_and_keeps_the_weights() -> None:
    chosen = plan(LLAMA_3B, 78)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (True, False)


def test_a_small_card_recomputes_and_keeps_four_bits() -> None:
    chosen = plan(LLAMA_3B, 8)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (False, True)


def test_what_was_said_is_done() -> None:
    quant = QuantConfig(keep_dequantized=Choice.never)
    chosen = plan(LLAMA_3B, 78, quant, checkpointing=Choice.always)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (False, True)


def test_plain_lora_takes_the_whole_base() -> None:
    plain = QuantConfig(QuantKind.none, double=False)
    assert plan(LLAMA_3B, 78, plain).base > 2.5 * plan(LLAMA_3B, 78, QuantConfig(keep_dequantized=Choice.never)).base


def test_what_cannot_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch=1.*trainer\.max_length.*gradient_checkpointing"):
        plan(LLAMA_3B, 3)


def test_the_line_for_people_names_both_sides() -> None:
    assert "of 78.0 GiB free" in plan(LLAMA_3B, 78).describe(78 * GIB)


def test_a_config_is_read_with_its_defaults(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert read_shape(tmp_path) == Shape(64, 128, 2, 4, 4, 16, 100, has_tied_head=False)


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ContractError, match="num_attention_heads"):
        read_shape(tmp_path)
