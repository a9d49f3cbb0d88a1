"""On a card: the hand-written layers train as transformers and autograd do, in bf16 and 4 bits, within their memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.layout import DataDir
from scripts import bench_gpu_train
from scripts.bench_gpu_budget import make_demand
from scripts.bench_gpu_models import LLAMA_3B, make_shape
from scripts.bench_gpu_steps import Figure, LeftOut, Setting
from train.memory import choose_plan


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cuda", 0), is_small=True, data=DataDir(tmp_path), folder=tmp_path)


def read(found: Sequence[Figure | LeftOut]) -> dict[str, float]:
    return {figure.name: figure.value for figure in found if isinstance(figure, Figure)}


def test_gradients_are_those_of_autograd(setting: Setting) -> None:
    assert read(bench_gpu_train.prove_gradients(setting))["gradients, packed against apart"] < 0.1


def test_packed_logits_are_those_of_each_document_alone(setting: Setting) -> None:
    figures = read(bench_gpu_train.prove_packing(setting))
    assert figures
    assert max(figures.values()) < bench_gpu_train.PACKED_GAP


def test_a_linear_layer_of_codes_is_bit_equal_to_its_values() -> None:
    """The product that bitsandbytes makes of codes is the one of the values that are kept."""
    from bitsandbytes.nn.modules import Linear4bit

    from train.model import dequantize

    make: Any = Linear4bit
    layer = make(256, 512, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict(torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16).state_dict())
    layer = layer.to("cuda")
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert torch.equal(layer(x), dequantize(layer)(x))


@pytest.mark.timeout(600)
def test_the_least_memory_is_what_was_estimated(tmp_path: Path) -> None:
    """Llama-3.2-3B's shape, one pack of 2,048, true NF4, layers recomputed."""
    if torch.cuda.get_device_properties(0).total_memory < 6e9:
        pytest.skip("wanted a card of 6 GB or more")
    setting = Setting(torch.device("cuda", 0), is_small=False, data=DataDir(tmp_path), folder=tmp_path)
    peak = read(bench_gpu_train.time_small_memory(setting))["most memory"]
    plan = choose_plan(make_shape(LLAMA_3B), make_demand(2048), 10**12)
    assert peak <= 4.0
    assert 0.8 < plan.total / 1e9 / peak < 1.25
