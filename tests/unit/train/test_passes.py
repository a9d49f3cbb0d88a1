"""Every implementation of a pass computes the same, and the gradients are autograd's."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from train.kernels import find_passes_gap, run_passes
from train.passes import IN_PLACE, PLAIN, Passes, compile_passes

BOTH = pytest.mark.parametrize("passes", [IN_PLACE, PLAIN], ids=lambda passes: passes.name)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@BOTH
def test_they_agree_with_the_formulas_in_float32(passes: Passes, dtype: torch.dtype, limit: float) -> None:
    assert find_passes_gap(passes, torch.device("cpu"), dtype) < limit


@BOTH
def test_the_norms_gradient_is_autograds(passes: Passes) -> None:
    x, weight, dy, residual = draw(5, 16).requires_grad_(), draw(16), draw(5, 16) + 1, draw(5, 16) - 1
    expected: Any = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
    expected.backward(dy)
    normed, inverse = passes.normalize(x.detach().float(), weight.float(), 1e-5)
    torch.testing.assert_close(normed.double(), expected, rtol=1e-5, atol=1e-5)
    found = passes.normalize_backward(dy.float(), x.detach().float(), inverse, weight.float(), residual.float())
    assert x.grad is not None
    torch.testing.assert_close(found.double(), x.grad + residual, rtol=1e-5, atol=1e-5)


@BOTH
def test_the_gates_gradient_is_autograds(passes: Passes) -> None:
    both, dy = draw(5, 12).requires_grad_(), draw(5, 6)
    gate, up = both.chunk(2, dim=-1)
    expected: Any = functional.silu(gate) * up
    expected.backward(dy)
    torch.testing.assert_close(passes.activate(both.detach()).double(), expected, rtol=1e-6, atol=1e-6)
    product, found = passes.activate_backward(dy.float(), both.detach().float())
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), both.grad, rtol=1e-5, atol=1e-5)


@BOTH
def test_turning_back_undoes_a_turn(passes: Passes) -> None:
    angles = draw(7, 1, 4)
    heads, cos, sin = draw(7, 3, 8).float(), angles.cos().float(), angles.sin().float()
    turned = passes.rotate(heads, cos, sin)
    assert not torch.allclose(turned, heads)
    torch.testing.assert_close(passes.rotate(turned, cos, -sin), heads, rtol=1e-5, atol=1e-5)


@BOTH
def test_scores_are_those_of_cross_entropy(passes: Passes) -> None:
    logits, labels = draw(6, 50).requires_grad_(), torch.arange(6)
    losses: Any = functional.cross_entropy(logits, labels, reduction="none")
    losses.sum().backward()
    log_probs, _, _, is_top1, gradient = passes.score(logits.detach().float(), labels, True)
    torch.testing.assert_close(-log_probs.double(), losses, rtol=1e-5, atol=1e-5)
    assert gradient is not None
    torch.testing.assert_close(-gradient.double(), logits.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(is_top1, logits.argmax(1) == labels)
    assert passes.score(logits.detach().float(), labels, False)[4] is None


def test_the_formulas_can_be_compiled_whole() -> None:
    """A card compiles them with inductor; here the tracing alone shows that none breaks apart."""
    traced = compile_passes(backend="eager")
    for found, exact in zip(
        run_passes(traced, torch.device("cpu"), torch.float32),
        run_passes(PLAIN, torch.device("cpu"), torch.float32),
        strict=True,
    ):
        assert torch.equal(found, exact)
