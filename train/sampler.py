"""The order of the rows: batches of like length, in random order.

Rows of like length share a batch, so that little padding is computed; the batches themselves are shuffled, so that
neighbouring steps see long and short rows alike. The Trainer's own grouping goes from long to short again and again:
where length tells the kinds of row apart, the model then learns one kind after the other. Knows nothing but lengths.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW_BATCHES = 32
"""Batches that are sorted together: enough for batches of like length, few enough to differ from epoch to epoch."""


class LengthGroupedBatches(Sampler[int]):
    """Yields row indices; each run of `batch_size` of them is a batch of like length."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, processes: int = 1) -> None:
        """Keep what decides the order.

        Args:
            lengths: Tokens of each row.
            batch_size: Rows at once in one process.
            seed: Of the order; each epoch has another order under the same seed.
            processes: That take turns with the batches. Where the last turn is not full, it is filled with the row
                after the last, in which nothing is to be learned: no row is learned from twice.
        """
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.fillers = -len(lengths) % (batch_size * processes) if processes > 1 else 0

    def __len__(self) -> int:
        """Return the number of rows, with those that fill up the last turn."""
        return len(self.lengths) + self.fillers

    def set_epoch(self, epoch: int) -> None:
        """Choose an epoch's order; the Trainer calls this, also when it goes on from a checkpoint."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield every row once; a batch that is not full comes last."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        window = WINDOW_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(rows), window):
            part = sorted(rows[start : start + window], key=lambda row: self.lengths[row])
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]
        for batch in shuffled + last:
            yield from batch
        yield from [len(self.lengths)] * self.fillers
