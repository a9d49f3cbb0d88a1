"""A Llama layer with LoRA adapters, forward and backward by hand: the same numbers in fewer passes over memory.

Autograd runs some two hundred small operations a layer, most of them casts and copies; on two CPU cores they cost as
much as the matrix products. Here each half of a layer is one node of the graph that keeps what its backward pass needs
and nothing else. Tokens come flat, without padding (flat_batch.py). Who attends and who computes what lies between the
products is handed in (kernels.py). Knows neither rows nor the loss.

Source: the LoRA paper (arXiv 2106.09685, eq. 3) for the adapter; transformers' modeling_llama.py for the layer.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from train.attention import Attention
from train.flat_batch import FlatBatch
from train.passes import Passes


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square norm.

    Attributes:
        weight: (C,), frozen.
        epsilon: Added to the mean square.
    """

    weight: Tensor
    epsilon: float


class Projection(Protocol):
    """Frozen linear layers that read the same input, as one matrix, and what their adapters are scaled by.

    Attributes:
        sizes: Output values of each layer; they sum to O.
        scales: alpha / rank of each layer's adapter.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """Output values of each layer."""

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each layer's adapter."""

    @property
    def weight(self) -> Tensor:
        """(O, C), the layers' weights one below the other; made anew at each reading where they are packed."""


@dataclass(frozen=True, slots=True)
class PlainProjection:
    """A projection whose weights lie in memory as they are multiplied."""

    weight: Tensor
    sizes: tuple[int, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PackedProjection:
    """A projection whose weights are 4-bit codes.

    Attributes:
        layers: bitsandbytes' Linear4bit layers.
        sizes: Output values of each.
        scales: alpha / rank of each layer's adapter.
    """

    layers: tuple[Any, ...]
    sizes: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def weight(self) -> Tensor:
        """(O, C): the exact values of the codes, in new memory."""
        from bitsandbytes.functional import dequantize_4bit

        states = [layer.weight.quant_state for layer in self.layers]
        whole = torch.empty(
            sum(self.sizes), states[0].shape[1], dtype=states[0].dtype, device=self.layers[0].weight.device
        )
        for layer, state, part in zip(self.layers, states, whole.split(self.sizes), strict=True):
            if part.is_cuda:
                dequantize_4bit(layer.weight.data, state, out=part)
            else:  # bitsandbytes writes into given memory on cards only
                part.copy_(dequantize_4bit(layer.weight.data, state))
        return whole.to(self.layers[0].compute_dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of every token's position, (N, 1, D / 2) each."""

    cos: Tensor
    sin: Tensor


class AttentionKernel(Protocol):
    """Who attends: blocks of matrix products (attention.py), or a kernel of a library (flat_attention.py)."""

    def attend(self, heads: Tensor, attention: Attention, batch: FlatBatch) -> tuple[Tensor, list[Tensor]]:
        """Return (N, H * D) mixed values of (N, H + 2 KV, D) heads, and what the backward pass wants back."""

    def attend_backward(
        self, d_mixed: Tensor, heads: Tensor, kept: list[Tensor], attention: Attention, batch: FlatBatch
    ) -> Tensor:
        """Return the gradient of the heads."""


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """The frozen parts of an attention half: `reads` is q, k and v, `writes` is o."""

    norm: Norm
    reads: Projection
    writes: Projection
    attention: Attention
    kernel: AttentionKernel
    passes: Passes


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """The frozen parts of an MLP half: `reads` is gate and up, `writes` is down."""

    norm: Norm
    reads: Projection
    writes: Projection
    passes: Passes


class Adapter:
    """The adapters of one projection in the compute dtype, as two matrices for all its layers."""

    def __init__(self, projection: Projection, pairs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        """Stack the layers' adapters.

        Args:
            projection: Whose.
            pairs: A (r, C) and B (O_j, r) of each layer in turn; none where adapters are switched off.
            dtype: Of the products.
        """
        self.projection, self.is_on = projection, bool(pairs)
        if not pairs:
            return
        self.ranks = [len(a) for a in pairs[0::2]]
        self.down = torch.cat([a.to(dtype) for a in pairs[0::2]])  # (R, C)
        self.up = self.down.new_zeros(sum(projection.sizes), len(self.down))  # (O, R), one block a layer
        for (rows, columns), b, scale in zip(self._blocks(), pairs[1::2], projection.scales, strict=True):
            self.up[rows, columns] = b * scale

    def _blocks(self) -> list[tuple[slice, slice]]:
        """Return where each layer stands in `up`."""
        blocks, row, column = [], 0, 0
        for size, rank in zip(self.projection.sizes, self.ranks, strict=True):
            blocks.append((slice(row, row + size), slice(column, column + rank)))
            row, column = row + size, column + rank
        return blocks

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the layers' outputs side by side (N, O), and x as the adapters see it (N, R)."""
        y = x @ self.projection.weight.T
        if not self.is_on:
            return y, None
        narrow = x @ self.down.T
        return y.addmm_(narrow, self.up.T), narrow

    def pull(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of x (N, C), and of x as the adapters see it (N, R)."""
        dx = dy @ self.projection.weight
        if not self.is_on:
            return dx, None
        d_narrow = dy @ self.up
        return dx.addmm_(d_narrow, self.down), d_narrow

    def collect(self, dy: Tensor, x: Tensor, narrow: Tensor | None, d_narrow: Tensor | None) -> list[Tensor]:
        """Return the gradient of each A and B in turn, float32."""
        if narrow is None or d_narrow is None:
            return []
        d_down, d_up = (d_narrow.T @ x).float(), dy.T @ narrow  # (R, C), (O, R)
        gradients = []
        for (rows, columns), scale in zip(self._blocks(), self.projection.scales, strict=True):
            gradients += [d_down[columns], d_up[rows, columns].float() * scale]
        return gradients


class AttentionHalf(torch.autograd.Function):
    """x + o(attention(rotate(q), rotate(k), v)), with q, k, v projected from the normed x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, half: AttentionWeights, batch: FlatBatch, rotation: Rotation, *adapters: Tensor
    ) -> Tensor:
        """Compute the half layer.

        Args:
            ctx: For the backward pass.
            x: (N, C).
            half: The frozen weights.
            batch: Which tokens see which.
            rotation: Of the tokens' positions.
            *adapters: A and B of q, k, v and o; none where adapters are switched off.

        Returns:
            (N, C).
        """
        split = 6 if adapters else 0
        reads, writes = Adapter(half.reads, adapters[:split], x.dtype), Adapter(half.writes, adapters[split:], x.dtype)
        normed, inverse = half.passes.normalize(x, half.norm.weight, half.norm.epsilon)
        qkv, narrow = reads.project(normed)
        heads = qkv.view(len(x), -1, half.attention.head_size)
        turning = half.attention.rotated_heads
        heads[:, :turning] = half.passes.rotate(heads[:, :turning], rotation.cos, rotation.sin)
        mixed, kept = half.kernel.attend(heads, half.attention, batch)
        y, narrow_out = writes.project(mixed)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, inverse, qkv, narrow, mixed, narrow_out, *kept)
            ctx.parts = (half, batch, rotation, reads, writes)
        return y.add_(x)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the adapters."""
        x, inverse, qkv, narrow, mixed, narrow_out, *kept = ctx.saved_tensors
        half, batch, rotation, reads, writes = ctx.parts
        dy = outputs[0]
        d_mixed, d_narrow = writes.pull(dy)
        d_writes = writes.collect(dy, mixed, narrow_out, d_narrow)
        heads = qkv.view(len(x), -1, half.attention.head_size)
        d_heads = half.kernel.attend_backward(d_mixed, heads, kept, half.attention, batch)
        turning = half.attention.rotated_heads
        d_heads[:, :turning] = half.passes.rotate(d_heads[:, :turning], rotation.cos, -rotation.sin)
        normed, _ = half.passes.normalize(x, half.norm.weight, half.norm.epsilon)
        d_qkv = d_heads.view(len(x), -1)
        d_normed, d_narrow = reads.pull(d_qkv)
        d_reads = reads.collect(d_qkv, normed, narrow, d_narrow)
        dx = half.passes.normalize_backward(d_normed, x, inverse, half.norm.weight, dy)
        return dx, None, None, None, *d_reads, *d_writes


class MlpHalf(torch.autograd.Function):
    """x + down(silu(gate) * up), with gate and up projected from the normed x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: MlpWeights, *adapters: Tensor) -> Tensor:
        """Compute the half layer.

        Args:
            ctx: For the backward pass.
            x: (N, C).
            half: The frozen weights.
            *adapters: A and B of gate, up and down; none where adapters are switched off.

        Returns:
            (N, C).
        """
        split = 4 if adapters else 0
        reads, writes = Adapter(half.reads, adapters[:split], x.dtype), Adapter(half.writes, adapters[split:], x.dtype)
        normed, inverse = half.passes.normalize(x, half.norm.weight, half.norm.epsilon)
        both, narrow = reads.project(normed)
        y, narrow_out = writes.project(half.passes.activate(both))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, inverse, both, narrow, narrow_out)
            ctx.parts = (half, reads, writes)
        return y.add_(x)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the adapters."""
        x, inverse, both, narrow, narrow_out = ctx.saved_tensors
        half, reads, writes = ctx.parts
        dy = outputs[0]
        d_product, d_narrow = writes.pull(dy)
        product, d_both = half.passes.activate_backward(d_product, both)
        d_writes = writes.collect(dy, product, narrow_out, d_narrow)
        normed, _ = half.passes.normalize(x, half.norm.weight, half.norm.epsilon)
        d_normed, d_narrow = reads.pull(d_both)
        d_reads = reads.collect(d_both, normed, narrow, d_narrow)
        return half.passes.normalize_backward(d_normed, x, inverse, half.norm.weight, dy), None, *d_reads, *d_writes
