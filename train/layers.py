"""A Llama layer with LoRA adapters, forward and backward by hand: the same numbers in fewer passes over memory.

Autograd runs some two hundred small operations a layer, most of them casts and copies; on two CPU cores they cost as
much as the matrix products. Here each half of a layer is one node of the graph that keeps what its backward pass needs
and nothing else. Tokens come flat, without padding (flat_batch.py). Knows neither rows nor the loss.

Source: the LoRA paper (arXiv 2106.09685, eq. 3) for the adapter; transformers' modeling_llama.py for the layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.attention import Attention, attend, attend_backward
from train.flat_batch import FlatBatch


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square norm.

    Attributes:
        weight: (C,), frozen.
        epsilon: Added to the mean square.
    """

    weight: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class Projection:
    """Frozen linear layers that read the same input, as one matrix, and what their adapters are scaled by.

    Attributes:
        weight: (O, C), the layers' weights one below the other, frozen.
        sizes: Output values of each layer; they sum to O.
        scales: alpha / rank of each layer's adapter.
    """

    weight: Tensor
    sizes: tuple[int, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of every token's position, (N, 1, D / 2) each."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """The frozen parts of an attention half: `reads` is q, k and v, `writes` is o."""

    norm: Norm
    reads: Projection
    writes: Projection
    attention: Attention


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """The frozen parts of an MLP half: `reads` is gate and up, `writes` is down."""

    norm: Norm
    reads: Projection
    writes: Projection


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
        self.up = self.down.new_zeros(len(projection.weight), len(self.down))  # (O, R), one block a layer
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

    def backward(self, dy: Tensor, x: Tensor, narrow: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of x (N, C) and of each A and B in turn, float32."""
        dx = dy @ self.projection.weight
        if not self.is_on or narrow is None:
            return dx, []
        d_narrow = dy @ self.up  # (N, R)
        dx.addmm_(d_narrow, self.down)
        d_down, d_up = (d_narrow.T @ x).float(), dy.T @ narrow  # (R, C), (O, R)
        gradients = []
        for (rows, columns), scale in zip(self._blocks(), self.projection.scales, strict=True):
            gradients += [d_down[columns], d_up[rows, columns].float() * scale]
        return dx, gradients


def normalize(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the normed x in its dtype and the reciprocal of its root mean square, (N, 1) float32."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(norm.epsilon))
    return (wide * inverse).to(x.dtype).mul_(norm.weight), inverse


def normalize_backward(dy: Tensor, x: Tensor, inverse: Tensor, norm: Norm) -> Tensor:
    """Return the gradient of x, given that of the normed x."""
    wide = x.float().mul_(inverse)
    d_wide = (dy * norm.weight).float()
    mean = (d_wide * wide).mean(-1, keepdim=True)
    return d_wide.sub_(wide.mul_(mean)).mul_(inverse).to(x.dtype)


def rotate(heads: Tensor, rotation: Rotation, *, back: bool = False) -> Tensor:
    """Rotate queries or keys by their positions, or a gradient back.

    Args:
        heads: (N, H, D).
        rotation: Of the same tokens.
        back: Rotate the other way.
    """
    first, second = heads.chunk(2, dim=-1)
    sin = -rotation.sin if back else rotation.sin
    rotated = torch.empty_like(heads)
    low, high = rotated.chunk(2, dim=-1)
    torch.mul(first, rotation.cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, rotation.cos, out=high).addcmul_(first, sin)
    return rotated


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
        normed, inverse = normalize(x, half.norm)
        qkv, narrow = reads.project(normed)
        heads = qkv.view(len(x), -1, half.attention.head_size)
        turning = half.attention.rotated_heads
        heads[:, :turning] = rotate(heads[:, :turning], rotation)
        mixed, kept = attend(heads, half.attention, batch)
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
        d_mixed, d_writes = writes.backward(dy, mixed, narrow_out)
        heads = qkv.view(len(x), -1, half.attention.head_size)
        d_heads = attend_backward(d_mixed, heads, kept, half.attention, batch)
        turning = half.attention.rotated_heads
        d_heads[:, :turning] = rotate(d_heads[:, :turning], rotation, back=True)
        normed, _ = normalize(x, half.norm)
        d_normed, d_reads = reads.backward(d_heads.view(len(x), -1), normed, narrow)
        dx = normalize_backward(d_normed, x, inverse, half.norm).add_(dy)
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
        normed, inverse = normalize(x, half.norm)
        both, narrow = reads.project(normed)
        gate, up = both.chunk(2, dim=-1)
        y, narrow_out = writes.project(torch.nn.functional.silu(gate).mul_(up))
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
        gate, up = both.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        d_product, d_writes = writes.backward(dy, activated * up, narrow_out)
        d_both = torch.empty_like(both)
        d_gate, d_up = d_both.chunk(2, dim=-1)
        torch.mul(d_product, activated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_product.mul_(up), gate, grad_input=d_gate)
        normed, _ = normalize(x, half.norm)
        d_normed, d_reads = reads.backward(d_both, normed, narrow)
        return normalize_backward(d_normed, x, inverse, half.norm).add_(dy), None, *d_reads, *d_writes
