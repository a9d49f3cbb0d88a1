"""How the tokens of a micro-batch lie in memory: flat, without padding, and what all rows begin with only once.

Rows of one run mostly open with the same tokens: a system message, the frame of the first question. What a token
becomes depends on the tokens before it and on nothing else, so a common beginning is computed once and every row
attends to it; losses and gradients are those of the padded batch. Does not know the model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.tokens import IGNORED

LEAST_SAVED = 0.1
"""Share of a micro-batch's tokens that a common beginning must save: attending in two parts costs something too."""


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Where each token of a micro-batch stands.

    N tokens stand in a flat array: first the P shared ones, then each row's own, one row after the other. Attention
    wants rows of equal width: `places` leads there and back.

    Attributes:
        take: (N,) index of each token in the flattened (B, T) input.
        positions: (N,) place of each token in its row, from 0.
        shared: P, tokens that all rows begin with; 0 where nothing is shared.
        rows: B.
        width: S, the most own tokens of a row.
        places: (N - P,) index of each own token in the flattened (B, S).
        scored: (M,) flat index of the tokens whose successor is learned.
        scored_from: (M,) index of the same in the flattened (B, T).
        labels: (M,) the learned successors.
    """

    take: Tensor
    positions: Tensor
    shared: int
    rows: int
    width: int
    places: Tensor
    scored: Tensor
    scored_from: Tensor
    labels: Tensor


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
    lengths = mask.sum(1)  # (B,)
    starts = mask.argmax(1)  # (B,): where padding on the left ends
    steps = torch.arange(width, device=input_ids.device)
    # Each row moved to the left: column j is the row's j-th token.
    columns = (starts[:, None] + steps).clamp(max=width - 1)  # (B, T)
    is_token = steps < lengths[:, None]
    # A token is scored by the label of its successor.
    moved = labels.gather(1, (columns + 1).clamp(max=width - 1))
    is_scored = (moved != IGNORED) & (steps + 1 < lengths[:, None])
    shared = _count_shared(input_ids.gather(1, columns), is_token, is_scored) if share and rows > 1 else 0

    flat = torch.arange(rows, device=input_ids.device)[:, None] * width + columns  # (B, T) into the input
    own, is_own = flat[:, shared:], is_token[:, shared:]
    take = torch.cat([flat[0, :shared], own[is_own]])
    columns_own = steps.expand(rows, width)[:, shared:]
    positions = torch.cat([steps[:shared], columns_own[is_own]])
    width_own = int(lengths.max()) - shared
    is_own = is_own[:, :width_own]
    # In the flat order: the shared tokens are never scored.
    scored_own = is_scored[:, shared:][:, :width_own][is_own]
    scored = scored_own.nonzero().squeeze(1) + shared
    return FlatBatch(
        take=take,
        positions=positions,
        shared=shared,
        rows=rows,
        width=width_own,
        places=is_own.flatten().nonzero().squeeze(1),
        scored=scored,
        scored_from=take[scored],
        labels=moved[:, shared:][:, :width_own][is_own][scored_own],
    )


def _count_shared(tokens: Tensor, is_token: Tensor, is_scored: Tensor) -> int:
    """Return how many tokens all rows begin with, none of them scored and each row left with one of its own."""
    is_same = (tokens == tokens[0]).all(0) & ~is_scored.any(0)
    is_same[:-1] &= is_token[:, 1:].all(0)
    is_same[-1] = False
    count = int(is_same.int().cumprod(0).sum())
    return count if count * (len(tokens) - 1) >= LEAST_SAVED * int(is_token.sum()) else 0
