"""One card's memory is divided by what files and tables say; what does not fit is refused with what would help."""

import json
from pathlib import Path

import pytest

from core.errors import ConfigError, ContractError
from serve.card_budget import (
    CONTEXT_BYTES,
    ENCODER_SCRATCH_BYTES,
    ENGINE_RUNTIME_BYTES,
    GIB,
    ModelSize,
    measure_encoder,
    plan_card,
    read_model_size,
)
from serve.engine_command import EngineConfig

LLAMA_3B = ModelSize(weights=6_425_499_648, cache_a_token=2 * 2 * 28 * 1024, adapter_a_rank=2 * 28 * 54_272)
ENCODERS = {"embedder": GIB, "reranker": GIB}


def engine(**values: object) -> EngineConfig:
    return EngineConfig(**{"device": "cuda", "max_model_len": 8192, "max_loras": 8, "max_lora_rank": 16, **values})  # type: ignore[arg-type]


def test_every_byte_is_given_once() -> None:
    budget = plan_card(24 * GIB, LLAMA_3B, engine(), ENCODERS, index=GIB // 2, trainer=4 * GIB)
    assert budget.engine + sum(budget.shares.values()) == 24 * GIB
    assert budget.shares["the gateway's context"] == CONTEXT_BYTES
    assert budget.utilization * 24 * GIB <= budget.engine < (budget.utilization + 0.01) * 24 * GIB
    fixed = LLAMA_3B.weights + 8 * 16 * LLAMA_3B.adapter_a_rank + ENGINE_RUNTIME_BYTES
    assert budget.cache_tokens == (round(budget.utilization * 100) * 24 * GIB // 100 - fixed) // LLAMA_3B.cache_a_token


def test_serving_retrieval_and_a_four_bit_run_fit_a_card_of_24_gigabytes() -> None:
    budget = plan_card(24 * GIB, LLAMA_3B, engine(), ENCODERS, index=GIB // 2, trainer=int(4.0 * GIB))
    assert budget.cache_tokens >= 4 * 8192


def test_without_retrieval_on_the_card_nothing_is_kept_for_it() -> None:
    budget = plan_card(24 * GIB, LLAMA_3B, engine(), {"embedder": 0}, index=0, trainer=0)
    assert list(budget.shares) == ["spare"]
    assert budget.utilization == pytest.approx(0.97)


def test_a_limit_that_was_set_stays_one() -> None:
    budget = plan_card(80 * GIB, LLAMA_3B, engine(gpu_memory_utilization=0.5), ENCODERS, index=0, trainer=0)
    assert budget.utilization == 0.5
    for hundredths in range(20, 90):
        limit = hundredths / 100
        budget = plan_card(81_559 * 2**20, LLAMA_3B, engine(gpu_memory_utilization=limit), {}, index=0, trainer=0)
        assert budget.utilization == limit


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(ConfigError) as refused:
        plan_card(8 * GIB, LLAMA_3B, engine(), ENCODERS, index=0, trainer=0)
    assert "one answer of 8,192 tokens" in refused.value.message
    assert "engine.max_model_len" in refused.value.message
    smaller = engine(max_model_len=512, max_loras=1)
    assert plan_card(10 * GIB, LLAMA_3B, smaller, {}, index=0, trainer=0).cache_tokens >= 512


def test_several_cards_share_the_weights() -> None:
    alone = plan_card(24 * GIB, LLAMA_3B, engine(), {}, index=0, trainer=0)
    shared = plan_card(24 * GIB, LLAMA_3B, engine(tensor_parallel_size=2), {}, index=0, trainer=0)
    assert shared.cache_tokens > 2 * alone.cache_tokens


def test_a_model_folder_tells_its_size(tmp_path: Path) -> None:
    config = {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "head_dim": 128, "dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    size = read_model_size(tmp_path)
    assert size == ModelSize(1000, LLAMA_3B.cache_a_token, LLAMA_3B.adapter_a_rank)
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    assert read_model_size(tmp_path).weights == 500
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ContractError, match="num_hidden_layers"):
        read_model_size(tmp_path)


def test_an_encoder_is_its_weights_in_half_and_its_scratch(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert measure_encoder(tmp_path) == 500 + ENCODER_SCRATCH_BYTES
    assert measure_encoder(None) == 0
