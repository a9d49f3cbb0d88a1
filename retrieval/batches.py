"""Texts of like length together: how many tokens a batch has, which texts it holds, and its padding.

Does not know models or texts.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from retrieval.encoder import Batch

BATCHES_A_LANE = 2
"""Batches that few texts are shared out into for each lane of the encoder, so that none ends long before another."""
LEAST_BATCH_TOKENS = 512
"""Fewer tokens than these are not worth a batch of their own."""
CARD_BATCH_TOKENS = 2**15
"""Least budget of a batch on a card: of a small model fewer tokens are computed sooner than they are sent there."""


def set_budget(lengths: Sequence[int], most: int, lanes: int) -> int:
    """Return the tokens of a batch: at most `most`, and no more than lets every lane of the encoder work."""
    if lanes == 1:
        return most
    return min(most, max(LEAST_BATCH_TOKENS, math.ceil(sum(lengths) / (BATCHES_A_LANE * lanes))))


def share_out(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield places of texts of like length, the longest first, as many as fit a budget of tokens with their padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def pad_rows(rows: Sequence[Sequence[int]], padding: int) -> Batch:
    """Return token numbers and mask; the first text is the longest."""
    ids = np.full((len(rows), len(rows[0])), padding, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask
