"""The bytes that a token is counted to move are those that the layers really move, on tensors of no size."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.attention import Attention
from train.footprint import Shape
from train.layers import (
    AttentionHalf,
    AttentionWeights,
    MlpHalf,
    MlpWeights,
    Norm,
    PlainProjection,
    Rotation,
)
from train.operations import count_token_traffic
from train.passes import PLAIN, Passes

SHAPE = Shape(96, 160, 1, 4, 2, 16, 1000, has_tied_head=True)
TOKENS, RANK, NARROW = 4096, 2, 8
META: Any = {"device": "meta", "dtype": torch.bfloat16}


class Moved(TorchDispatchMode):
    """Counts the bytes of tensors with a row for each token, as operations read and write them."""

    def __init__(self) -> None:
        """Start with nothing moved."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = {"adapters": 0, "residual": 0, "rotation": 0, "passes": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"mm", "addmm_"}:
            if any(min(one.shape) <= NARROW for one in [*args, found]):  # not a product with the base's weights
                self.bytes["adapters"] += sum(map(count, args)) + (count(found) if name == "addmm_" else 0)
        elif name == "add_":
            self.bytes["residual"] += sum(map(count, args)) + count(found)
        elif name == "copy_":
            self.bytes["rotation"] += count(args[1]) + count(found)
        elif name not in {"empty", "empty_like", "new_empty"} and not func.is_view and count(found):
            pytest.fail(f"{name} moves what is not counted")
        return found


def count(value: Any) -> int:
    """Return the bytes of a tensor of all tokens; narrow ones (what adapters make, cosines) are next to nothing."""
    if not isinstance(value, Tensor) or TOKENS not in value.shape:
        return 0
    return 0 if value.numel() <= NARROW * TOKENS else value.numel() * value.element_size()


def as_one_kernel(moved: Moved, pass_name: str) -> Any:
    """Return a pass that counts each of its inputs and results once, as a compiled one moves them."""
    run = getattr(PLAIN, pass_name)

    def counted(*inputs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            found = run(*inputs)
        kind = "rotation" if pass_name == "rotate" else "passes"
        moved.bytes[kind] += sum(count(one) for one in [*inputs, *tree_leaves(found)])
        return found

    return counted


class Nobody:
    """Attends to nothing: attention's bytes are not what is counted here."""

    def attend(self, heads: Tensor, attention: Attention, batch: Any) -> tuple[Tensor, list[Tensor]]:
        return torch.empty(len(heads), attention.heads * attention.head_size, **META), []

    def attend_backward(self, d_mixed: Tensor, heads: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(heads)


def test_the_layers_move_what_is_counted() -> None:
    moved = Moved()
    names = ("normalize", "normalize_backward", "rotate", "activate", "activate_backward", "score")
    passes = Passes("counted", *(as_one_kernel(moved, name) for name in names))
    hidden, inner = SHAPE.hidden, SHAPE.intermediate

    def make(inputs: int, *outputs: int) -> tuple[PlainProjection, list[Tensor]]:
        pairs = [torch.empty(size, **META, requires_grad=True) for o in outputs for size in ((RANK, inputs), (o, RANK))]
        return PlainProjection(torch.empty(sum(outputs), inputs, **META), outputs, (1.0,) * len(outputs)), pairs

    norm = Norm(torch.empty(hidden, **META), 1e-5)
    reads, first = make(hidden, SHAPE.queries, SHAPE.keys, SHAPE.keys)
    writes, second = make(SHAPE.queries, hidden)
    half = AttentionWeights(norm, reads, writes, Attention(4, 2, 16), Nobody(), passes)
    gates, third = make(hidden, inner, inner)
    down, fourth = make(inner, hidden)
    rotation = Rotation(*(torch.empty(TOKENS, 1, 8, **META) for _ in "ab"))
    x = torch.empty(TOKENS, hidden, **META, requires_grad=True)
    batch: Any = None
    with moved:
        mixed: Any = AttentionHalf.apply(x, half, batch, rotation, *first, *second)  # type: ignore[no-untyped-call]
        y: Any = MlpHalf.apply(mixed, MlpWeights(norm, gates, down, passes), *third, *fourth)  # type: ignore[no-untyped-call]
        y.backward(torch.empty_like(y))
    found = {name: size / TOKENS for name, size in moved.bytes.items()}
    wanted = count_token_traffic(SHAPE)
    for part in ("adapters", "residual", "rotation"):
        assert found[part] == getattr(wanted, part), part
    assert found["passes"] == wanted.norms + wanted.gate
