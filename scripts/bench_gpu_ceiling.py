"""What a token of Llama-3.2-3B's shape costs at least in scripts/bench_gpu.py: computed, not measured, on any machine.

Operations of the large products at the rate of large products, and bytes between them at the rate of a large copy. For
compiled passes the bytes are train/operations.py's; for passes in place they are counted by running them on tensors
without values.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.bench_gpu_models import LLAMA_3B, PACK_TOKENS, RANK, make_shape
from scripts.bench_gpu_steps import Figure, Setting
from train.operations import TokenTraffic, count_token_operations, count_token_traffic
from train.passes import IN_PLACE

PRODUCTS_PER_S, BYTES_PER_S = 800e12, 3.0e12
"""Of an H100: products of 8,192 in bfloat16, and a copy on the card, read and written bytes both counted."""
GOAL = 31_000
TOKENS = 64
MAKES_NOTHING = {"empty", "empty_like", "new_empty", "new_empty_strided", "ones_like"}


class Moved(TorchDispatchMode):
    """Counts the bytes that each operation reads and writes; views move none."""

    def __init__(self) -> None:
        """Start with nothing moved."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        options = kwargs or {}
        found = func(*args, **options)
        if not func.is_view and func.overloadpacket.__name__ not in MAKES_NOTHING:
            read = {id(one): one for one in tree_leaves((args, options)) if isinstance(one, Tensor)}
            written = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
            self.bytes += sum(one.numel() * one.element_size() for one in [*read.values(), *written])
        return found


def count_moved_bytes(run: Callable[[], Any]) -> float:
    """Return the bytes that a function on TOKENS tokens moves for each of them."""
    moved = Moved()
    with moved, torch.no_grad():
        run()
    return moved.bytes / TOKENS


def count_traffic_in_place() -> TokenTraffic:
    """Count what the passes as torch's operations move for a token; adapters and residual are as ever."""
    shape = make_shape(LLAMA_3B)
    hidden, inner, turning = shape.hidden, shape.intermediate, shape.queries + shape.keys

    def make(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*size, dtype=dtype, device="meta")

    x, weight, half = make(TOKENS, hidden), make(hidden), (TOKENS, 1, shape.head_size // 2)
    inverse = make(TOKENS, 1, dtype=torch.float32)
    both, product = make(TOKENS, 2 * inner), make(TOKENS, inner)
    heads = make(TOKENS, turning // shape.head_size, shape.head_size)
    labels, logits = make(TOKENS, dtype=torch.long), make(TOKENS, shape.vocabulary)
    compiled = count_token_traffic(shape)
    norm = count_moved_bytes(lambda: IN_PLACE.normalize(x, weight, 1e-5))
    norm_back = count_moved_bytes(lambda: IN_PLACE.normalize_backward(x, x, inverse, weight, x))
    turn = count_moved_bytes(lambda: heads.copy_(IN_PLACE.rotate(heads, make(*half), make(*half))))
    gate = count_moved_bytes(lambda: IN_PLACE.activate(both))
    gate_back = count_moved_bytes(lambda: IN_PLACE.activate_backward(product, both))
    return TokenTraffic(
        norms=shape.layers * 2 * (2 * norm + norm_back),
        rotation=shape.layers * 2 * turn,
        gate=shape.layers * (gate + gate_back),
        adapters=compiled.adapters,
        residual=compiled.residual,
        scores=count_moved_bytes(lambda: IN_PLACE.score(logits, labels, True)),
    )


def compute_ceiling(_: Setting) -> list[Figure]:
    """Compute a token's least time, the passes compiled and in place, and what is left for all else at the goal."""
    operations = count_token_operations(make_shape(LLAMA_3B), RANK, PACK_TOKENS)
    products_s = operations.total / PRODUCTS_PER_S
    figures = [
        Figure("operations of a token, one document a pack", operations.total / 1e9, "GFLOP"),
        Figure("its products at 800 TFLOP/s", products_s * 1e6, "µs", f"{1e6 / GOAL:.1f} for all at {GOAL:,} tokens/s"),
    ]
    ways = {"compiled": count_token_traffic(make_shape(LLAMA_3B)), "in place": count_traffic_in_place()}
    for name, traffic in ways.items():
        figures += [
            Figure(f"{part.name}, {name}", getattr(traffic, part.name) / 1e6, "MB a token") for part in fields(traffic)
        ]
        passes_s = traffic.total / BYTES_PER_S
        figures += [
            Figure(f"passes at 3.0 TB/s, {name}", passes_s * 1e6, "µs a token"),
            Figure(f"tokens a second at most, {name}", 1 / (products_s + passes_s), "tokens/s"),
            Figure(
                f"products must run at, {name}", operations.total / max(1 / GOAL - passes_s, 1e-9) / 1e12, "TFLOP/s"
            ),
        ]
    return figures
