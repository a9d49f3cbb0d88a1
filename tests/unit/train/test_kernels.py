"""The start-up probe takes the first kernel that runs and is right, and says why it left others out."""

import logging
from functools import partial

import pytest
import torch

from train import flat_attention, kernels
from train.attention import Attention
from train.config import FlatAttention
from train.flat_attention import Borders, attend_one_by_one
from train.kernels import ATTENTIONS, CPU_KERNELS, Widths, choose_kernels, try_kernel

SHAPE = Attention(heads=4, key_value_heads=2, head_size=16)
WIDTHS = Widths(SHAPE, hidden=64, inner=128, vocabulary=500)
CPU = torch.device("cpu")


def test_the_configuration_names_what_there_is() -> None:
    assert [choice.value for choice in FlatAttention] == list(ATTENTIONS)


def test_a_cpu_takes_blocks_without_trying() -> None:
    assert choose_kernels("auto", WIDTHS, CPU, torch.float32) is CPU_KERNELS
    assert CPU_KERNELS.shares_prefix


def test_a_kernel_that_is_named_is_tried_and_taken() -> None:
    chosen = choose_kernels("sdpa", WIDTHS, CPU, torch.float32)
    assert (chosen.names[0], chosen.shares_prefix) == ("sdpa", False)
    assert "attention by sdpa" in chosen.describe()


def test_what_does_not_run_or_is_wrong_gives_way_to_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def attend_wrongly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: Borders) -> torch.Tensor:
        return attend_one_by_one(q * 2, k, v, borders)

    def attend_never(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    functions: dict[str, flat_attention.AttendFunction] = {
        "missing": attend_never,
        "wrong": attend_wrongly,
        "right": attend_one_by_one,
    }
    with caplog.at_level(logging.INFO):
        tried = [name for name in functions if try_kernel(name, partial(_gap, functions[name]))]
    assert tried == ["right"]
    assert "no kernel image is available" in caplog.text
    assert "wrong is wrong and not used" in caplog.text


def _gap(function: flat_attention.AttendFunction) -> float:
    return kernels.find_attention_gap(flat_attention.LibraryAttention("x", function), SHAPE, CPU, torch.float32)


def test_what_is_no_number_is_not_right() -> None:
    assert not try_kernel("nan", lambda: float("nan"))
    assert try_kernel("exact", lambda: 0.0)


def test_a_name_that_fails_falls_back_to_blocks() -> None:
    chosen = choose_kernels("varlen", WIDTHS, CPU, torch.float32)
    assert (chosen.names[0], chosen.shares_prefix) == ("blocks", True)
