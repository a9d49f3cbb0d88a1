"""train/held_out.py: every learned token counts once, and the loss is torch's own."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from train.held_out import measure_prediction
from train.tokens import IGNORED, Example


def make_model() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_the_loss_is_the_mean_over_all_learned_tokens() -> None:
    model = make_model()
    rows = [([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, 4, 5]), ([7, 8, 9], [IGNORED, 8, IGNORED])]
    examples: list[Example] = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    told: list[int] = []
    found = measure_prediction(model, examples, lambda: told.append(1))
    losses = [float(model(input_ids=torch.tensor([i]), labels=torch.tensor([t])).loss) for i, t in rows]
    assert found.tokens == 4
    assert found.loss == pytest.approx((3 * losses[0] + losses[1]) / 4, abs=1e-5)
    assert len(told) == 2


def test_accuracy_counts_the_most_likely_tokens() -> None:
    model = make_model()
    ids = [1, 2, 3]
    best = int(model(input_ids=torch.tensor([ids])).logits[0, 1].argmax())
    for label, share in ((best, 1.0), ((best + 1) % 40, 0.0)):
        example: Example = {"input_ids": [1, 2, label], "labels": [IGNORED, IGNORED, label]}
        assert measure_prediction(model, [example], lambda: None).token_accuracy == share
