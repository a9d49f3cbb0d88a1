"""Every implementation of a pass computes the same, and the gradients are autograd's."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unit.train.test_decoder import make_inputs, make_model, pack
from train.attention import Attention
from train.decoder import Decoder
from train.flat_attention import FUNCTIONS, LibraryAttention
from train.head import score_trained_tokens
from train.kernels import TRIAL_TOKENS, Kernels, Widths, find_passes_gap, run_passes
from train.passes import IN_PLACE, PLAIN, Passes, compile_passes

CPU = torch.device("cpu")
WIDTHS = Widths(Attention(heads=4, key_value_heads=1, head_size=16), hidden=64, inner=128, vocabulary=500)
BOTH = pytest.mark.parametrize("passes", [IN_PLACE, PLAIN], ids=lambda passes: passes.name)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@BOTH
def test_they_agree_with_the_formulas_in_float32(passes: Passes, dtype: torch.dtype, limit: float) -> None:
    assert find_passes_gap(passes, WIDTHS, CPU, dtype) < limit


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
        run_passes(traced, WIDTHS, 33, CPU, torch.float32),
        run_passes(PLAIN, WIDTHS, 33, CPU, torch.float32),
        strict=True,
    ):
        assert torch.equal(found, exact)


def test_training_compiles_no_pass_for_widths_that_vary_and_few_at_all() -> None:
    """What the trial compiled is what a step runs: torch gives up at the ninth compilation of a pass."""
    made: list[list[torch.Size]] = []

    def note(graph: Any, _: list[Any]) -> Any:
        values = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        made.append([value.shape for value in values if isinstance(value, torch.Tensor)])
        return graph.forward

    torch.compiler.reset()
    model, passes = make_model(), compile_passes(note)
    base = model.get_base_model()
    assert find_passes_gap(passes, Widths.of_model(base), CPU, torch.float32) < 1e-5
    tried = len(made)
    assert tried == len(TRIAL_TOKENS) * 6
    kernels = Kernels(LibraryAttention("sdpa", FUNCTIONS["sdpa"]), passes, ("sdpa", "noted"), shares_prefix=False)
    score_trained_tokens(base, Decoder(base, kernels))
    for common in (12, 14, 20):
        inputs = pack(make_inputs(common=common))
        model(**inputs, use_cache=False, fused_lm_head=True).loss.backward()
        with torch.no_grad():
            model(**inputs, use_cache=False, fused_lm_head=True)
    assert len(made) - tried <= 2, "turning back has its sine laid out otherwise, and an evaluation wants no gradient"
    with torch.autocast("cpu", torch.bfloat16):  # as a trainer on a card goes forward, but not backward
        loss = model(**inputs, use_cache=False, fused_lm_head=True).loss
    loss.backward()
    assert len(made) - tried <= 2
    assert all(isinstance(size, int) for shapes in made for shape in shapes for size in shape[1:])
    assert all(any(not isinstance(size, int) for shape in shapes for size in shape) for shapes in made[tried:])
    torch.compiler.reset()
