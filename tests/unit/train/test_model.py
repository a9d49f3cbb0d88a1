"""Keeping the 4-bit weights dequantized changes no bit of any product."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from core.errors import ConfigError
from tests.fakes.small_run import make_model
from train.config import LoraConfig, QuantConfig, QuantKind
from train.hardware import Machine
from train.model import add_adapter, dequantize, keep_dequantized, load_base, restore_float32

DTYPES = [torch.float32, torch.bfloat16]


make: Any = Linear4bit


def make_layer(dtype: torch.dtype) -> Any:
    torch.manual_seed(5)
    plain = nn.Linear(128, 192, bias=False, dtype=dtype)
    layer: Any = make(128, 192, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_and_gradients_are_bit_equal(dtype: torch.dtype) -> None:
    layer = make_layer(dtype)
    assert layer.weight.quant_state.nested
    ours, theirs = (
        torch.randn(7, 128, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_() for _ in "ab"
    )
    plain = dequantize(layer)
    kept, computed = plain(ours), layer(theirs)
    assert torch.equal(kept, computed)
    for product in (kept, computed):
        product.float().square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert not plain.weight.requires_grad


def test_every_four_bit_layer_is_replaced() -> None:
    model = nn.Sequential(make_layer(torch.bfloat16), nn.Sequential(nn.ReLU(), nn.Linear(192, 4)))
    assert keep_dequantized(model) == 128 * 192 * 2
    assert [type(module) for module in model.modules() if isinstance(module, nn.Linear)] == [nn.Linear, nn.Linear]


def test_only_what_trains_returns_to_float32() -> None:
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, dtype=torch.bfloat16))
    model[0].requires_grad_(False)
    restore_float32(model)
    assert [model[0].weight.dtype, model[1].weight.dtype] == [torch.bfloat16, torch.float32]


def test_a_target_that_no_linear_layer_has_is_refused() -> None:
    base = make_model().unload()
    for targets, unknown in ((["q_proj", "v_porj"], "v_porj"), (["embed_tokens"], "embed_tokens"), (["nope"], "nope")):
        with pytest.raises(ConfigError, match=rf"down_proj, gate_proj, .*, found {unknown}\."):
            add_adapter(base, LoraConfig(targets=targets), "base", 0)
    adapted = add_adapter(base, LoraConfig(targets=["self_attn.q_proj", "o_proj"]), "base", 0)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 4


@pytest.mark.parametrize("attention", ["no_such_attention", "flash_attention_2"])
def test_an_attention_that_does_not_run_here_is_refused_by_its_key(attention: str, tmp_path: Path) -> None:
    make_model().unload().save_pretrained(tmp_path)
    machine = Machine(torch.device("cpu"), "cpu", torch.float32, 0, 1)
    with pytest.raises(ConfigError, match=f"hardware.attention: wanted {attention}"):
        load_base(tmp_path, QuantConfig(QuantKind.none, double=False), machine, attention)
