"""vLLM's CPU worker with LoRA arithmetic that groups tokens by adapter. The one module that runs inside vLLM.

vLLM 0.32 on a CPU gathers a copy of the adapter's weights for every single token (`lora_b_weights[indices]` in
vllm/lora/ops/torch_ops), which makes the prompt of an adapter many times slower than the base model's, and takes the
last slot's adapter for tokens that have none (index -1). Here each run of tokens with the same adapter is two matrix
products on a view; where runs are many and short, as when answers of several adapters are written at once, the whole
batch is two. Tokens without an adapter are left alone. Named by `--worker-cls`
(serve/engine_command.py), which is vLLM's own switch for it; the GPU build uses its fused kernels instead. The gateway
never imports this module. See docs/decisions/0021-cpu-lora.md.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

MANY_SEGMENTS = 3
SHORT_SEGMENT = 8
"""Tokens on average: a product for each of so many so short runs costs more than it saves."""


def find_segments(indices: torch.Tensor) -> list[tuple[int, int, int]]:
    """Return the runs of equal adapter slots in a batch.

    Args:
        indices: The slot of each token's adapter, -1 for none; (tokens,).

    Returns:
        (slot, first token, token after the last) for each run that has an adapter.
    """
    slots, counts = torch.unique_consecutive(indices, return_counts=True)
    segments = []
    start = 0
    for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
        if slot >= 0:
            segments.append((slot, start, start + count))
        start += count
    return segments


def add_grouped_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    segments: list[tuple[int, int, int]],
) -> None:
    """Add each token's adapter to a linear layer's output, in place: y += scale · (x Aᵀ) Bᵀ.

    Args:
        y: The layer's output; (tokens, sum of output_slices).
        x: The layer's input; (tokens, in).
        lora_a_stacked: For each slice of a fused layer, A of every slot; (slots, 1, rank, in).
        lora_b_stacked: For each slice, B of every slot; (slots, 1, out, rank).
        scale: Factor on top of what is already in B.
        output_slices: Width of each slice in y.
        segments: What `find_segments` returned for the batch.

    Source: Hu et al. 2021, LoRA, equation 3.
    """
    for slot, start, end in segments:
        rows = x[start:end]
        offset = 0
        for lora_a, lora_b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            shrunk = rows.to(lora_a.dtype) @ lora_a[slot, 0].T  # (rows, rank)
            grown = shrunk @ lora_b[slot, 0].T  # (rows, out)
            y[start:end, offset : offset + width].add_(grown[:, :width], alpha=scale)
            offset += width


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose the tokens of a batch are, those without an adapter left out.

    Attributes:
        tokens: Their places in the batch; (owned tokens,) int64.
        slots: The slot of each one's adapter; (owned tokens,) int64.
    """

    tokens: torch.Tensor
    slots: torch.Tensor


def find_owners(indices: torch.Tensor, segments: list[tuple[int, int, int]]) -> Owners | None:
    """Return whose each token is, where a batch is better computed for all adapters at once, else None.

    Args:
        indices: The slot of each token's adapter, -1 for none; (tokens,).
        segments: What `find_segments` returned for them.
    """
    if len(segments) < MANY_SEGMENTS or len(indices) > SHORT_SEGMENT * len(segments):
        return None
    tokens = torch.nonzero(indices >= 0).flatten()
    return Owners(tokens, indices[tokens])


def add_mixed_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    owners: Owners,
) -> None:
    """Add each token's adapter, as `add_grouped_lora` does, to all tokens at once.

    Every token is multiplied with every A, which are small, and keeps its own; then with its own B. What another
    adapter holds never reaches it, not even as a product with zero.

    Args:
        y: The layer's output; (tokens, sum of output_slices).
        x: The layer's input; (tokens, in).
        lora_a_stacked: For each slice of a fused layer, A of every slot; (slots, 1, rank, in).
        lora_b_stacked: For each slice, B of every slot; (slots, 1, out, rank).
        scale: Factor on top of what is already in B.
        output_slices: Width of each slice in y.
        owners: What `find_owners` returned for the batch.
    """
    rows = x[owners.tokens].to(lora_a_stacked[0].dtype)  # (owned, in)
    places = torch.arange(len(rows))
    offset = 0
    for lora_a, lora_b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        every = rows @ lora_a[:, 0].flatten(0, 1).T  # (owned, slots · rank)
        shrunk = every.view(len(rows), len(lora_a), -1)[places, owners.slots]  # (owned, rank)
        grown = torch.bmm(lora_b[owners.slots, 0], shrunk.unsqueeze(-1)).squeeze(-1)  # (owned, out)
        y[:, offset : offset + width].index_add_(0, owners.tokens, grown[:, :width].to(y.dtype), alpha=scale)
        offset += width


class GroupedLora(PunicaWrapperCPU):
    """vLLM's LoRA metadata for a batch, with the linear layers' arithmetic replaced."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over a batch's mapping and find its segments and owners once for all layers."""
        super().update_metadata(*args, **kwargs)
        self._segments = find_segments(self.token_lora_indices)
        self._owners = find_owners(self.token_lora_indices, self._segments)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_unused: Any,
    ) -> None:
        """Add the adapters' share to a linear layer's output, in place."""
        rows, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if self._owners is None:
            add_grouped_lora(rows, inputs, lora_a_stacked, lora_b_stacked, scale, output_slices, self._segments)
        else:
            add_mixed_lora(rows, inputs, lora_a_stacked, lora_b_stacked, scale, output_slices, self._owners)


class GroupedLoraWorker(CPUWorker):
    """vLLM's CPU worker, told to use GroupedLora."""

    def init_device(self) -> None:
        """Point the platform at GroupedLora before the model is loaded, then go on as vLLM does."""
        name = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda _platform: name)  # type: ignore[method-assign, assignment]
        super().init_device()  # type: ignore[no-untyped-call]
