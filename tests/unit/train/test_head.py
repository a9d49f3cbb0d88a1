"""The head that reads learned positions only gives torch's own loss and gradients."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from train import head

score: Any = head.FrozenHeadLogProbs.apply


def make_case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(37, 24, generator=generator, dtype=dtype)
    weight = torch.randn(301, 24, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(0, 301, (37,), generator=generator)


def test_loss_and_gradient_equal_cross_entropy() -> None:
    hidden, weight, labels = make_case(torch.float64)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    log_probs, entropy, mean, is_top1 = score(ours, weight, labels)
    scale = torch.linspace(0.1, 2, len(labels))
    (-log_probs * scale).sum().backward()
    logits = theirs @ weight.T
    loss: Any = (functional.cross_entropy(logits, labels, reduction="none") * scale).sum()
    loss.backward()
    torch.testing.assert_close(
        -log_probs.double(), functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        entropy.double(), -(logits.softmax(1) * logits.log_softmax(1)).sum(1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(mean.double(), logits.mean(1), rtol=1e-4, atol=1e-5)
    assert torch.equal(is_top1, logits.argmax(1) == labels)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = make_case(torch.float32)
    whole = score(hidden, weight, labels)[0]
    monkeypatch.setattr(head, "CHUNK_LOGITS", 5 * 301)
    torch.testing.assert_close(score(hidden, weight, labels)[0], whole)


def test_no_learned_position_gives_an_empty_answer() -> None:
    hidden, weight, labels = make_case(torch.float32)
    log_probs, _, _, _ = score(hidden[:0].requires_grad_(), weight, labels[:0])
    assert log_probs.shape == (0,)
    log_probs.sum().backward()
