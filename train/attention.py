"""Causal attention over flat tokens, forward and backward, in blocks of queries that see no key they may not.

Full attention computes the half of its scores that the mask throws away and copies keys for every head that shares
them. Here a block of queries meets only the keys up to its end, rows that have ended take no part in it, and the heads
that share keys are one matrix. The beginning that all rows share (flat_batch.py) is attended once and seen by every
row. Does not know what the heads are projected from.

Source: «Attention Is All You Need» (arXiv 1706.03762, eq. 1); grouped queries: arXiv 2305.13245.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from train.flat_batch import FlatBatch

BLOCK = 128
"""Queries at once: measured best of 64, 128 and 256 on a CPU from 50 to 2,048 tokens."""
MAX_KEPT = 2**20
"""Attention weights of one layer that are kept for its backward pass; more are computed again, to save memory."""

softmax_backward = torch.ops.aten._softmax_backward_data.default  # noqa: SLF001  (torch gives it no public name)


@dataclass(frozen=True, slots=True)
class Attention:
    """The shape of a layer's attention."""

    heads: int
    key_value_heads: int
    head_size: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_value_heads

    @property
    def rotated_heads(self) -> int:
        """Query and key heads, which are rotated by position and stand before the value heads."""
        return self.heads + self.key_value_heads

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return 1 / math.sqrt(self.head_size)


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are attended at once.

    Attributes:
        start: First query.
        end: One past the last.
        keys_end: One past the last key that any of them sees.
        rows: Leading rows that reach beyond the first query.
        key_rows: The same, counted in rows of keys.
    """

    start: int
    end: int
    keys_end: int
    rows: int
    key_rows: int


@dataclass(slots=True)
class Rows:
    """Queries, keys and values of rows of equal width; keys may begin before the first query.

    Attributes:
        queries: (B, S, H, D).
        keys: (B * KV, T, D), T >= S: the last S belong to the queries.
        values: (B * KV, T, D).
        widths: Tokens of each row, falling; what comes after them is filling.
        attention: The shape.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    widths: tuple[int, ...]
    attention: Attention

    def blocks(self) -> Iterator["Block"]:
        """Yield blocks of queries from first to last, each with the rows that reach into it."""
        width = self.queries.shape[1]
        before = self.keys.shape[1] - width
        for start in range(0, width, BLOCK):
            end = min(width, start + BLOCK)
            rows = sum(row > start for row in self.widths)
            yield Block(start, end, before + end, rows, rows * self.attention.key_value_heads)

    def fold(self, values: Tensor, block: Block) -> Tensor:
        """Return a block of (B, S, H, D) as (b * KV, group * s, D), b rows of s queries."""
        shape = self.attention
        part = values[: block.rows, block.start : block.end].unflatten(2, (shape.key_value_heads, shape.group))
        folded: Tensor = part.permute(0, 2, 3, 1, 4).reshape(block.key_rows, -1, shape.head_size)
        return folded

    def unfold(self, values: Tensor, out: Tensor, block: Block) -> None:
        """Write (b * KV, group * s, D) into a block of (B, S, H, D)."""
        shape = self.attention
        part = values.view(block.rows, shape.key_value_heads, shape.group, block.end - block.start, shape.head_size)
        out[: block.rows, block.start : block.end] = part.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def weigh(self, block: Block) -> Tensor:
        """Return the attention weights of a block, (b * KV, group * s, keys_end)."""
        queries = self.fold(self.queries, block) * self.attention.scale
        scores = torch.bmm(queries, self.keys[: block.key_rows, : block.keys_end].transpose(1, 2))
        width = block.end - block.start
        future = torch.full((width, width), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
        scores.unflatten(1, (self.attention.group, width))[..., block.keys_end - width :].add_(future)
        return torch.softmax(scores, dim=-1)


def attend(heads: Tensor, attention: Attention, batch: FlatBatch) -> tuple[Tensor, list[Tensor]]:
    """Mix the values of all tokens that each token sees.

    Args:
        heads: (N, H + 2 KV, D): queries, keys and values, queries and keys rotated.
        attention: The shape.
        batch: Which tokens see which.

    Returns:
        (N, H * D), and what `attend_backward` wants back.
    """
    mixed = heads.new_empty(len(heads), attention.heads * attention.head_size)
    kept: list[Tensor] = []
    for part, rows in _list_rows(heads, attention, batch):
        out = torch.empty_like(rows.queries)
        for block in rows.blocks():
            weights = rows.weigh(block)
            rows.unfold(torch.bmm(weights, rows.values[: block.key_rows, : block.keys_end]), out, block)
            kept.append(weights)
        mixed[part] = _flatten_rows(out, batch, part)
    if sum(weights.numel() for weights in kept) > MAX_KEPT:
        kept = []
    return mixed, kept


def attend_backward(
    d_mixed: Tensor, heads: Tensor, kept: list[Tensor], attention: Attention, batch: FlatBatch
) -> Tensor:
    """Return the gradient of the heads, (N, H + 2 KV, D), given that of what `attend` returned."""
    d_heads = torch.empty_like(heads)
    d_past: tuple[Tensor, Tensor] | None = None
    weights_left = iter(kept)
    parts = list(_list_rows(heads, attention, batch))
    kept_by_part = [[next(weights_left, None) for _ in rows.blocks()] for _, rows in parts]
    for (part, rows), weights in zip(reversed(parts), reversed(kept_by_part), strict=True):
        d_out = _spread_rows(d_mixed[part].view(-1, attention.heads, attention.head_size), batch, part)
        d_queries, d_keys, d_values = _backward_rows(d_out, rows, weights)
        if d_past is not None:  # the shared beginning: every row's own tokens have looked at it
            d_keys += d_past[0]
            d_values += d_past[1]
        before = rows.keys.shape[1] - rows.queries.shape[1]
        if before:
            shape = (len(rows.queries), attention.key_value_heads, before, attention.head_size)
            d_past = d_keys[:, :before].view(shape).sum(0), d_values[:, :before].view(shape).sum(0)
            d_keys, d_values = d_keys[:, before:], d_values[:, before:]
        shape = (len(rows.queries), attention.key_value_heads, -1, attention.head_size)
        both = [d.reshape(shape).transpose(1, 2).to(heads.dtype) for d in (d_keys, d_values)]
        d_heads[part] = _flatten_rows(torch.cat([d_queries, *both], dim=2), batch, part).view(
            -1, heads.shape[1], attention.head_size
        )
    return d_heads


def _backward_rows(d_out: Tensor, rows: Rows, kept: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries (B, S, H, D), and of keys and values (B * KV, T, D) in float32."""
    d_queries = torch.empty_like(rows.queries)
    d_keys = torch.zeros(rows.keys.shape, dtype=torch.float32, device=d_out.device)
    d_values = torch.zeros_like(d_keys)
    scale = rows.attention.scale
    for block, weights in zip(rows.blocks(), kept, strict=True):
        weights = rows.weigh(block) if weights is None else weights  # noqa: PLW2901
        seen = (slice(block.key_rows), slice(block.keys_end))
        d_block = rows.fold(d_out, block)
        d_values[seen] += torch.bmm(weights.transpose(1, 2), d_block)
        d_weights = torch.bmm(d_block, rows.values[seen].transpose(1, 2))
        d_scores = softmax_backward(d_weights, weights, -1, weights.dtype).mul_(scale)
        rows.unfold(torch.bmm(d_scores, rows.keys[seen]), d_queries, block)
        d_keys[seen] += torch.bmm(d_scores.transpose(1, 2), rows.fold(rows.queries, block))
    return d_queries, d_keys, d_values


def _list_rows(heads: Tensor, attention: Attention, batch: FlatBatch) -> Iterator[tuple[slice, Rows]]:
    """Yield the shared beginning, where there is one, and the rows' own tokens, with their place in the flat array."""
    at = attention.heads, attention.rotated_heads
    past: tuple[Tensor, Tensor] | None = None
    parts = [slice(0, batch.shared), slice(batch.shared, len(heads))] if batch.shared else [slice(0, len(heads))]
    for part in parts:
        rows = _spread_rows(heads[part], batch, part)  # (B, S, H + 2 KV, D)
        queries, keys, values = rows[:, :, : at[0]], rows[:, :, at[0] : at[1]], rows[:, :, at[1] :]
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # (B, KV, S, D)
        if past is not None:
            past_keys, past_values = (shared.expand(len(keys), -1, -1, -1) for shared in past)
            keys, values = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
        past = keys, values
        widths = (batch.shared,) if part.stop == batch.shared else batch.widths
        yield part, Rows(queries, keys.flatten(0, 1), values.flatten(0, 1), widths, attention)


def _spread_rows(flat: Tensor, batch: FlatBatch, part: slice) -> Tensor:
    """Return a part's flat tokens as rows of equal width, (B, S, …), filled up with zeros."""
    if part.stop == batch.shared:
        return flat.unsqueeze(0)
    shape = (batch.rows, batch.width, *flat.shape[1:])
    if len(batch.places) == batch.rows * batch.width:
        return flat.reshape(shape)
    return flat.new_zeros(shape).flatten(0, 1).index_copy_(0, batch.places, flat).view(shape)


def _flatten_rows(rows: Tensor, batch: FlatBatch, part: slice) -> Tensor:
    """Return rows of equal width as a part's flat tokens, (n, …) with all that follows joined."""
    joined = rows.flatten(2).flatten(0, 1)
    is_full = part.stop == batch.shared or len(batch.places) == len(joined)
    return joined if is_full else joined[batch.places]
