"""What a Llama layer and its loss compute between matrix products, and who does: norm, rotation, gate, log-softmax.

Each pass exists twice, with one contract and one test: as in-place torch operations, which is what a CPU takes, and as
plain formulas that torch.compile turns into one kernel each, which is what a card takes. A card spends as long on the
former's reads and writes as on a quarter of the matrix products. Knows no adapters, no attention and no model.

Source: RMSNorm, arXiv 1910.07467 eq. 4; rotary positions, arXiv 2104.09864 eq. 34; SwiGLU, arXiv 2002.05202 eq. 5.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Passes:
    """One implementation of every pass.

    Attributes:
        name: For people.
        normalize: (x, weight, epsilon) → normed x in its dtype, and the reciprocal root mean square, (N, 1) float32.
        normalize_backward: (dy, x, inverse, weight, residual) → gradient of x, that of the residual added; may write
            into dy's memory, never into x's or the residual's.
        rotate: (heads, cos, sin) → heads turned by their positions; with -sin: turned back.
        activate: (both) → silu(gate) * up, (N, F) of (N, 2F).
        activate_backward: (d_product, both) → silu(gate) * up anew, and the gradient of both; may write into d_product.
        score: (logits, labels, wants_gradient) → log-probability, entropy, mean logit, float32, and whether the label
            is the most likely, (n,) each; and onehot - softmax in the logits' dtype, (n, V), or None.
    """

    name: str
    normalize: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    normalize_backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    activate: Callable[[Tensor], Tensor]
    activate_backward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    score: Callable[[Tensor, Tensor, bool], Scores]


def _normalize(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


def _normalize_backward(dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    wide = x.float().mul_(inverse)
    d_wide = (dy * weight).float()
    mean = (d_wide * wide).mean(-1, keepdim=True)
    return d_wide.sub_(wide.mul_(mean)).mul_(inverse).to(x.dtype).add_(residual)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.empty_like(heads)
    low, high = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return rotated


def _activate(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def _activate_backward(d_product: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = both.chunk(2, dim=-1)
    activated = functional.silu(gate)
    product = activated * up
    d_both = torch.empty_like(both)
    d_gate, d_up = d_both.chunk(2, dim=-1)
    torch.mul(d_product, activated, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_product.mul_(up), gate, grad_input=d_gate)
    return product, d_both


def _score(logits: Tensor, labels: Tensor, wants_gradient: bool) -> Scores:
    wide, label = logits.float(), labels.unsqueeze(1)  # (n, V), (n, 1)
    best, best_at = wide.max(1, keepdim=True)
    p = torch.softmax(wide, dim=1)
    # The most likely token has a probability of at least 1 / V, so its logarithm is exact.
    log_sum = best - p.gather(1, best_at).log_()  # (n, 1)
    log_probs = (wide.gather(1, label) - log_sum).squeeze(1)
    entropy = log_sum.squeeze(1) - torch.linalg.vecdot(p, wide)
    mean, is_top1 = wide.mean(1), (best_at == label).squeeze(1)
    gradient = None
    if wants_gradient:
        gradient = p.neg_().scatter_add_(1, label, torch.ones_like(label, dtype=p.dtype)).to(logits.dtype)
    return log_probs, entropy, mean, is_top1, gradient


IN_PLACE = Passes("in place", _normalize, _normalize_backward, _rotate, _activate, _activate_backward, _score)
"""Torch operations, one after the other, in as little memory as they need."""


def _normalize_plainly(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * weight, inverse


def _normalize_backward_plainly(dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    wide = x.float() * inverse
    d_wide = dy.float() * weight.float()
    mean = (d_wide * wide).mean(-1, keepdim=True)
    return ((d_wide - wide * mean) * inverse + residual.float()).to(x.dtype)


def _rotate_plainly(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    cos, sin = cos.float(), sin.float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)


def _activate_plainly(both: Tensor) -> Tensor:
    gate, up = both.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(both.dtype)


def _activate_backward_plainly(d_product: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = both.float().chunk(2, dim=-1)
    d_wide = d_product.float()
    open_share = torch.sigmoid(gate)
    activated = gate * open_share
    d_gate = d_wide * up * open_share * (1 + gate * (1 - open_share))
    return (activated * up).to(both.dtype), torch.cat([d_gate, d_wide * activated], dim=-1).to(both.dtype)


def _score_plainly(logits: Tensor, labels: Tensor, wants_gradient: bool) -> Scores:
    wide, label = logits.float(), labels.unsqueeze(1)
    best, best_at = wide.max(1, keepdim=True)
    shifted = (wide - best).exp()
    total = shifted.sum(1, keepdim=True)
    p = shifted / total
    log_sum = best + total.log()
    log_probs = (wide.gather(1, label) - log_sum).squeeze(1)
    entropy = log_sum.squeeze(1) - (p * wide).sum(1)
    gradient = None
    if wants_gradient:
        is_label = torch.arange(wide.shape[1], device=wide.device) == label
        gradient = (is_label.float() - p).to(logits.dtype)
    return log_probs, entropy, wide.mean(1), (best_at == label).squeeze(1), gradient


PLAIN = Passes(
    "formulas",
    _normalize_plainly,
    _normalize_backward_plainly,
    _rotate_plainly,
    _activate_plainly,
    _activate_backward_plainly,
    _score_plainly,
)
"""The same as formulas of new tensors: what is compiled."""


def compile_passes(backend: str | Callable[..., Any] = "inductor") -> Passes:
    """Return the formulas as kernels: compiled at their first use, and once more when a second number of tokens comes.

    Args:
        backend: Of torch.compile. `inductor` writes Triton for a card, and wants a C compiler on the machine.
    """
    name = backend if isinstance(backend, str) else getattr(backend, "__name__", "own")

    def compiled(function: Any) -> Any:
        made: Callable[..., Any] = torch.compile(function, backend=backend, fullgraph=True)

        @functools.wraps(function)
        def run(*inputs: Any) -> Any:
            # torch compiles anew for what is a parameter or wants a gradient, at most eight times: none is, none does.
            return made(*(value.detach() if isinstance(value, Tensor) else value for value in inputs))

        return run

    return Passes(
        f"compiled ({name})",
        *(
            compiled(function)
            for function in (
                PLAIN.normalize,
                PLAIN.normalize_backward,
                PLAIN.rotate,
                PLAIN.activate,
                PLAIN.activate_backward,
                PLAIN.score,
            )
        ),
    )
