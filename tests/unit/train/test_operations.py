"""What a token costs is counted as 4N + 6P + 3A, and agrees with what torch counts on a real model."""

from typing import Any

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from train.footprint import Shape
from train.operations import count_token_operations, find_used_share

LLAMA_3B = Shape(3072, 8192, 28, 24, 8, 128, 128_256, has_tied_head=True)


def test_the_parts_are_those_of_the_formula() -> None:
    found = count_token_operations(LLAMA_3B, 16, 2048)
    weights = 3_212_749_824 - 3072 * (2 * 28 + 1)  # all but the norms; the embedding is the head
    assert found.base == 4 * weights
    assert found.adapter == 6 * LLAMA_3B.adapter_parameters(16)
    assert found.attention == 3 * 4 * 3072 * 28 * 1024.5
    assert found.total == found.base + found.adapter + found.attention
    assert count_token_operations(LLAMA_3B, 16, 2048, is_head_counted=False).base == 4 * LLAMA_3B.linear_parameters


def test_the_goal_is_the_share_that_it_is_said_to_be() -> None:
    used = find_used_share(31_000, count_token_operations(LLAMA_3B, 16, 2048), 800e12)
    assert used == pytest.approx(0.545, abs=0.005)


def test_torch_counts_the_same_on_a_real_model() -> None:
    rank, length = 4, 24
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    base: Any = LlamaForCausalLM(config)
    base.set_attn_implementation("eager")
    base.requires_grad_(False)
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    embeds = torch.randn(1, length, 32, requires_grad=True)  # so that the first layer's inputs want a gradient too
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeds).logits.sum().backward()
    expected = count_token_operations(Shape(32, 48, 2, 4, 2, 8, 96, has_tied_head=True), rank, length)
    # Plain attention computes what the mask throws away too: all tokens instead of those before.
    whole = expected.base + expected.adapter + expected.attention * 2 * length / (length + 1)
    assert counter.get_total_flops() / length == pytest.approx(whole, rel=0.01)
