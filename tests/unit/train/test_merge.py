"""train/merge.py: merged weights answer as PEFT's adapter does, on the original base and on the NF4-rounded one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from core.errors import ContractError
from train.config import LoraConfig, QuantConfig
from train.hardware import Machine
from train.merge import (
    Delta,
    Rounding,
    build_skeleton,
    list_rounded,
    merge_files,
    merge_model,
    read_stored_dtype,
)
from train.model import add_adapter, keep_dequantized, load_base

IDS = torch.arange(3, 27).reshape(2, 12)
MACHINE = Machine(torch.device("cpu"), "test", torch.float32, 2**34, 1)


def write_base(folder: Path, dtype: torch.dtype, *, is_tied: bool = True, shard: str = "5GB") -> Path:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=is_tied,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def load_rounded(folder: Path) -> Any:
    """Load as training does; the 4-bit values are kept, because on a CPU bitsandbytes answers by a coarser product."""
    model = load_base(folder, QuantConfig(), MACHINE, "eager")
    keep_dequantized(model)
    return model


def give_values(adapted: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def save_adapter(adapted: Any, folder: Path) -> Path:
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.inference_mode()
def read_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize(("is_tied", "rslora", "shard"), [(True, False, "5GB"), (False, True, "60KB")])
def test_merged_files_answer_as_pefts_adapter_does(tmp_path: Path, *, is_tied: bool, rslora: bool, shard: str) -> None:
    base = write_base(tmp_path / "base", torch.float32, is_tied=is_tied, shard=shard)
    adapted = add_adapter(load(base), LoraConfig(rank=8, alpha=16, rslora=rslora), "base", 0)
    give_values(adapted)
    delta = Delta.read(save_adapter(adapted, tmp_path / "adapter"))
    (tmp_path / "merged").mkdir()
    told: list[tuple[int, int]] = []
    merge_files(base, tmp_path / "merged", delta, None, lambda *now: told.append(now))
    files = len(list(base.glob("*.safetensors")))
    assert told == [(done, files) for done in range(1, files + 1)]
    assert (files > 1) == (shard == "60KB")
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == "{}"
    expected, merged = read_logits(adapted), read_logits(load(tmp_path / "merged"))
    assert (expected - read_logits(load(base))).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-4)


def test_the_rounded_base_is_what_training_multiplied_with(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    quantized = load_rounded(base)
    rounding = Rounding(list_rounded(load(base)), double=True, dtype=torch.float32)
    assert rounding.names == list_rounded(build_skeleton(base))
    assert len(rounding.names) == 2 * 7
    plain = load(base)
    merge_model(plain, Delta({}, 1.0), rounding, torch.float32)
    assert (read_logits(plain) - read_logits(load(base))).abs().max() > 1e-3  # rounding shows
    torch.testing.assert_close(read_logits(plain), read_logits(quantized), atol=1e-5, rtol=1e-4)


def test_merging_onto_the_rounded_base_keeps_what_the_adapter_was_trained_against(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.float32)
    adapted = add_adapter(load_rounded(base), LoraConfig(rank=8), "base", 0)
    give_values(adapted)
    delta = Delta.read(save_adapter(adapted, tmp_path / "adapter"))
    original, rounded = load(base), load(base)
    merge_model(original, delta, None, torch.float32)
    merge_model(rounded, delta, Rounding(list_rounded(rounded), double=True, dtype=torch.float32), torch.float32)
    expected = read_logits(adapted)
    torch.testing.assert_close(read_logits(rounded), expected, atol=2e-5, rtol=1e-4)
    assert (read_logits(original) - expected).abs().max() > 1e-3


def test_a_merged_model_in_memory_has_the_values_of_the_merged_files(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    adapted = add_adapter(load(base), LoraConfig(rank=8), "base", 0)
    give_values(adapted)
    delta = Delta.read(save_adapter(adapted, tmp_path / "adapter"))
    (tmp_path / "merged").mkdir()
    rounding = Rounding(list_rounded(load(base)), double=True, dtype=torch.float32)
    merge_files(base, tmp_path / "merged", delta, rounding, lambda _done, _all: None)
    assert read_stored_dtype(tmp_path / "merged") is torch.bfloat16
    in_memory = load(base)
    merge_model(in_memory, delta, rounding, read_stored_dtype(base))
    assert torch.equal(read_logits(in_memory), read_logits(load(tmp_path / "merged")))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.float32)
    adapter = save_adapter(add_adapter(load(base), LoraConfig(rank=8), "base", 0), tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in weights if ".layers.1." in key)
    foreign = {key.replace(".layers.1.", ".layers.9."): value for key, value in weights.items()}
    save_file(foreign, adapter / "adapter_model.safetensors")
    with pytest.raises(ContractError, match=r"layers\.9\..* and 4 more"):
        merge_files(base, tmp_path / "merged", Delta.read(adapter), None, lambda _done, _all: None)
    del weights[key]
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ContractError, match="A and B of each layer"):
        Delta.read(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ContractError, match="use_dora"):
        Delta.read(adapter)
