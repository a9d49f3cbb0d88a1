"""What a card's trainer is given, as far as a CPU can tell: codes, recomputation, libraries' kernels."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.fakes.small_run import run_small
from tests.unit.train.test_decoder import (
    compute_plainly,
    make_inputs,
    make_model,
    make_packed_model,
    pack,
    take_gradients,
)
from tests.unit.train.test_trainer import ragged_rows
from train.config import Choice, FlatAttention, HardwareConfig, TrainerConfig
from train.trainer import use_own_kernels


def arguments_of_a_card(*, is_recomputed: bool) -> Any:
    """Return what use_own_kernels reads of a trainer's arguments on a card, but that the device is a CPU."""
    return SimpleNamespace(
        use_cpu=False, gradient_checkpointing=is_recomputed, bf16=False, device=torch.device("cpu"), world_size=1
    )


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("is_packed", [False, True], ids=["rows", "packs"])
def test_a_cards_step_has_the_gradients_of_the_plain_way(is_recomputed: bool, is_packed: bool) -> None:
    inputs, model = make_inputs(), make_model()
    compute_plainly(model, inputs, torch.float32).backward()
    expected = take_gradients(model)
    hardware = HardwareConfig(flat_attention=FlatAttention.sdpa, fused_layers=Choice.always)
    use_own_kernels(model.get_base_model(), arguments_of_a_card(is_recomputed=is_recomputed), hardware)
    model(**(pack(inputs) if is_packed else inputs), use_cache=False, fused_lm_head=True).loss.backward()
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_codes_that_are_recomputed_learn_as_their_values_do() -> None:
    found = []
    for is_kept in (True, False):
        model = make_packed_model(torch.float32, is_kept=is_kept)
        hardware = HardwareConfig(flat_attention=FlatAttention.sdpa, fused_layers=Choice.always)
        use_own_kernels(model.get_base_model(), arguments_of_a_card(is_recomputed=not is_kept), hardware)
        model(**make_inputs(), use_cache=False, fused_lm_head=True).loss.backward()
        found.append(take_gradients(model))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_a_model_that_the_layers_do_not_know_keeps_its_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)  # where it is installed it patches transformers
    model = make_model(lora_dropout=0.1)
    before = model.get_base_model().forward
    with caplog.at_level("INFO"):
        use_own_kernels(model.get_base_model(), arguments_of_a_card(is_recomputed=False), HardwareConfig())
    assert model.get_base_model().forward == before
    assert "lora.dropout is on" in caplog.text
    assert "Liger's kernels, which come with the CUDA set, are not installed" in caplog.text


def test_a_whole_run_by_a_librarys_attention_is_the_run_by_blocks(tmp_path: Path) -> None:
    options = TrainerConfig(batch_size=8, max_steps=1)
    runs = [
        run_small(tmp_path / name.value, ragged_rows(8), None, options, hardware=HardwareConfig(flat_attention=name))
        for name in (FlatAttention.blocks, FlatAttention.sdpa)
    ]
    for one, other in zip(*(run.read("step") for run in runs), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
