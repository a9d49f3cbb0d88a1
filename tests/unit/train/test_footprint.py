"""The count knows a model's parameters exactly, and reads from a configuration what decides memory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import ContractError
from train import attention, footprint, head
from train.config import Choice, HardwareConfig, LoraConfig, QuantKind, Strategy, TrainConfig
from train.footprint import Demand, Shape, count_base, read_shape

SMOLLM2 = Shape(576, 1536, 30, 9, 3, 64, 49_152, has_tied_head=True)
LLAMA_3B = Shape(3072, 8192, 28, 24, 8, 128, 128_256, has_tied_head=True)
DEMAND = Demand(QuantKind.nf4, rank=16, rows=4, length=2048, value_bytes=2)


def test_parameters_are_those_of_the_models() -> None:
    norms = 576 * (2 * 30 + 1)
    assert SMOLLM2.linear_parameters + SMOLLM2.embedding_parameters + norms == 134_515_008
    assert SMOLLM2.adapter_parameters(16) == 4_884_480
    norms = 3072 * (2 * 28 + 1)
    assert LLAMA_3B.linear_parameters + LLAMA_3B.embedding_parameters + norms == 3_212_749_824
    assert SMOLLM2.adapter_parameters(16, ["q_proj", "v_proj"]) == 30 * 16 * (576 + 576 + 576 + 192)


def test_plain_lora_takes_the_whole_base() -> None:
    plain, small = (count_base(LLAMA_3B, replace(DEMAND, quant=kind), is_dequantized=False) for kind in QuantKind)
    assert plain < 0.4 * small, "QuantKind lists nf4 first"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, True),
        ({"lora": LoraConfig(dropout=0.1)}, False),
        ({"lora": LoraConfig(targets=["q_proj"])}, False),
        ({"hardware": HardwareConfig(fused_layers=Choice.never)}, False),
        ({"hardware": HardwareConfig(fused_head=False)}, False),
        ({"hardware": HardwareConfig(processes=2, strategy=Strategy.fsdp2)}, False),
    ],
)
def test_a_configuration_tells_whether_layers_run_by_hand(values: dict[str, Any], expected: bool) -> None:
    assert Demand.of_config(TrainConfig(**values), 100, 4, "cpu").may_run_by_hand is expected
    assert Demand.of_config(TrainConfig(**values), 100, 4, "cuda").may_run_by_hand is expected


def test_the_sizes_of_pieces_are_those_of_the_code() -> None:
    assert footprint.FUSED_CHUNK_LOGITS == head.CHUNK_LOGITS
    assert footprint.CARD_CHUNK_LOGITS == head.CARD_CHUNK_LOGITS
    assert (footprint.ATTENTION_BLOCK, footprint.KEPT_WEIGHTS) == (attention.BLOCK, attention.MAX_KEPT)


def test_a_config_is_read_with_its_defaults(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert read_shape(tmp_path) == Shape(64, 128, 2, 4, 4, 16, 100, has_tied_head=False)


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ContractError, match="num_attention_heads"):
        read_shape(tmp_path)
