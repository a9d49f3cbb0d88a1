"""On a card: every attention that is installed, and the compiled passes, compute what blocks and formulas do."""

import pytest
import torch

from train import attention as blocks
from train.attention import Attention
from train.flat_attention import FUNCTIONS, LibraryAttention
from train.kernels import BLOCKS, LARGEST_GAP, Widths, choose_kernels, find_attention_gap, find_passes_gap
from train.passes import IN_PLACE, compile_passes

CARD = torch.device("cuda", 0)
LLAMA_3B = Attention(heads=24, key_value_heads=8, head_size=128)
WIDTHS = Widths(LLAMA_3B, hidden=3072, inner=8192, vocabulary=128_256)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_an_attention_keeps_documents_apart(name: str) -> None:
    kernel = LibraryAttention(name, FUNCTIONS[name])
    try:
        gap = find_attention_gap(kernel, LLAMA_3B, CARD, torch.bfloat16)
    except ImportError as error:
        pytest.skip(f"{name}: wanted the package {error.name}, found none")
    assert gap < LARGEST_GAP


def test_blocks_run_on_a_card_too() -> None:
    assert find_attention_gap(blocks, LLAMA_3B, CARD, torch.bfloat16) < LARGEST_GAP


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_passes_are_right_compiled_and_in_place(dtype: torch.dtype) -> None:
    for passes in (IN_PLACE, compile_passes()):
        assert find_passes_gap(passes, WIDTHS, CARD, dtype) < LARGEST_GAP


def test_a_card_takes_more_than_the_fallback() -> None:
    chosen = choose_kernels("auto", WIDTHS, CARD, torch.bfloat16)
    assert chosen.names[0] != BLOCKS
    assert chosen.passes is not IN_PLACE
