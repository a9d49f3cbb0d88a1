"""How the tokens of a micro-batch lie in memory: flat, without padding, and what all rows begin with only once.

A row is a document: what a pack joins (packing.py) is taken apart again. Rows of one run mostly open with the same
tokens: a system message, the frame of the first question. What a token becomes depends on the tokens before it and on
nothing else, so a common beginning is computed once and every row attends to it; losses and gradients are those of the
padded batch. How many tokens are learned decides the sizes of what follows, so on a card this would wait for the card:
the layout is found where the rows are put together, on the CPU, and goes along (`LayingOut`). Does not know the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.tokens import IGNORED

LAYOUT = "layout"
"""Under which a micro-batch carries its `FlatBatch`."""

LEAST_SAVED = 0.1
"""Share of a micro-batch's tokens that a common beginning must save: attending in two parts costs something too."""


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Where each token of a micro-batch stands.

    N tokens stand in a flat array: first the P shared ones, then each row's own, one row after the other, the longest
    first. Attention wants rows of equal width: `places` leads there and back.

    Attributes:
        take: (N,) index of each token in the flattened input.
        positions: (N,) place of each token in its row, from 0.
        shared: P, tokens that all rows begin with; 0 where nothing is shared.
        widths: Own tokens of each of the B rows, falling.
        starts: (B + 1,) int32: flat index of each row's first own token, and N.
        places: (N - P,) index of each own token in the flattened (B, S).
        scored: (M,) flat index of the tokens whose successor is learned.
        scored_from: (M,) index of the same in the flattened input.
        labels: (M,) the learned successors.
    """

    take: Tensor
    positions: Tensor
    shared: int
    widths: tuple[int, ...]
    starts: Tensor
    places: Tensor
    scored: Tensor
    scored_from: Tensor
    labels: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return len(self.widths)

    @property
    def width(self) -> int:
        """S, the most own tokens of a row."""
        return self.widths[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "FlatBatch":
        """Return it on a device; accelerate and micro_batch.py move batches so."""
        return self._map(lambda values: values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "FlatBatch":
        """Return it in memory that a card can read by itself; torch's data loader asks for it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "FlatBatch":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return FlatBatch(**values)


class LayingOut:
    """A collator whose batches say where their tokens go."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], *, share: bool) -> None:
        """Remember how rows become a batch.

        Args:
            collate: Makes `input_ids`, beside `position_ids` where it packs, else `attention_mask`; `labels`, or
                `completion_mask` as TRL's DPO has it.
            share: Look for a common beginning.
        """
        self.collate, self.share = collate, share

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Return the batch with its layout."""
        batch = self.collate(examples)
        labels = batch.get("labels")
        if labels is None:
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        return {**batch, LAYOUT: lay_out(batch, labels, share=self.share)}


def lay_out(batch: dict[str, Any], labels: Tensor, *, share: bool) -> FlatBatch:
    """Find a flat place for every token of what a collator made, padded or packed."""
    if batch.get("position_ids") is not None:
        return flatten_packs(batch["input_ids"], batch["position_ids"], labels, share=share)
    return flatten_batch(batch["input_ids"], batch.get("attention_mask"), labels, share=share)


def flatten_packs(input_ids: Tensor, position_ids: Tensor, labels: Tensor, *, share: bool = True) -> FlatBatch:
    """Find a flat place for every token of packed documents, each of which is a row.

    Args:
        input_ids: (1, L), one document after the other, without padding.
        position_ids: (1, L), 0 where a document begins.
        labels: (1, L), IGNORED where nothing is learned.
        share: Look for a common beginning.
    """
    total = position_ids.shape[1]
    starts = (position_ids[0] == 0).nonzero().squeeze(1)  # (B,)
    lengths = torch.diff(starts, append=starts.new_tensor([total]))
    steps = torch.arange(int(lengths.max()), device=position_ids.device)
    at = (starts[:, None] + steps).clamp(max=total - 1)  # (B, T) into the packs
    is_token = (steps < lengths[:, None]).long()
    batch = flatten_batch(input_ids[0][at], is_token, labels[0][at], share=share)
    place = at.flatten()
    return replace(batch, take=place[batch.take], scored_from=place[batch.scored_from])


def flatten_batch(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor, *, share: bool = True) -> FlatBatch:
    """Find a flat place for every token of a padded micro-batch.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 for tokens and 0 for padding, which stands on one side of a row; None for no padding.
        labels: (B, T), IGNORED where nothing is learned.
        share: Look for a common beginning.

    Returns:
        Where they go, on the device of the input.
    """
    rows, width = input_ids.shape
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    lengths, order = mask.sum(1).sort(descending=True, stable=True)  # (B,)
    starts = mask.argmax(1)[order]  # (B,): where padding on the left ends
    steps = torch.arange(width, device=input_ids.device)
    # Each row moved to the left: column j is the row's j-th token.
    columns = (starts[:, None] + steps).clamp(max=width - 1)  # (B, T)
    is_token = steps < lengths[:, None]
    # A token is scored by the label of its successor.
    moved = labels[order].gather(1, (columns + 1).clamp(max=width - 1))
    is_scored = (moved != IGNORED) & (steps + 1 < lengths[:, None])
    shared = _count_shared(input_ids[order].gather(1, columns), is_token, is_scored) if share and rows > 1 else 0

    flat = order[:, None] * width + columns  # (B, T) into the input
    own, is_own = flat[:, shared:], is_token[:, shared:]
    take = torch.cat([flat[0, :shared], own[is_own]])
    columns_own = steps.expand(rows, width)[:, shared:]
    positions = torch.cat([steps[:shared], columns_own[is_own]])
    starts = functional.pad((lengths - shared).cumsum(0), (1, 0)) + shared
    widths = (lengths - shared).tolist()
    is_own = is_own[:, : widths[0]]
    # In the flat order: the shared tokens are never scored.
    scored_own = is_scored[:, shared:][:, : widths[0]][is_own]
    scored = scored_own.nonzero().squeeze(1) + shared
    return FlatBatch(
        take=take,
        positions=positions,
        shared=shared,
        widths=tuple(widths),
        starts=starts.int(),
        places=is_own.flatten().nonzero().squeeze(1),
        scored=scored,
        scored_from=take[scored],
        labels=moved[:, shared:][:, : widths[0]][is_own][scored_own],
    )


def _count_shared(tokens: Tensor, is_token: Tensor, is_scored: Tensor) -> int:
    """Return how many tokens all rows begin with, none of them scored and each row left with one of its own."""
    is_same = (tokens == tokens[0]).all(0) & ~is_scored.any(0)
    is_same[:-1] &= is_token[:, 1:].all(0)
    is_same[-1] = False
    count = int(is_same.int().cumprod(0).sum())
    return count if count * (len(tokens) - 1) >= LEAST_SAVED * int(is_token.sum()) else 0
