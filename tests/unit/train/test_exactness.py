"""Batches have fingerprints, and an epoch reaches the sampler under any number of wrappers."""

from types import SimpleNamespace

import torch
from accelerate.data_loader import (
    BatchSamplerShard,
    SkipBatchSampler,
    skip_first_batches,
)
from torch.utils.data import BatchSampler, DataLoader

from train.exactness import BatchFingerprint, set_epoch_below
from train.sampler import LengthGroupedBatches


def fingerprint(*batches: torch.Tensor) -> str:
    sums = BatchFingerprint()
    for batch in batches:
        sums.add(batch)
    return sums.take()


def test_equal_batches_have_equal_fingerprints_and_others_other_ones() -> None:
    batch = torch.randint(0, 128_256, (4, 32), generator=torch.Generator().manual_seed(3))
    other = batch.clone()
    other[2, 7] += 1
    swapped = batch[[1, 0, 2, 3]]
    found = [
        fingerprint(batch), fingerprint(other), fingerprint(swapped), fingerprint(batch, other),
        fingerprint(other, batch), fingerprint(batch.reshape(8, 16)), fingerprint(),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert fingerprint(batch.clone(), other.clone()) == fingerprint(batch, other)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in found)


def test_taking_starts_anew() -> None:
    sums, batch = BatchFingerprint(), torch.tensor([[1, 2, 3]])
    sums.add(batch)
    first = sums.take()
    sums.add(batch)
    assert sums.take() == first


def test_an_epoch_reaches_the_sampler_of_a_shard_with_skipped_batches() -> None:
    sampler = LengthGroupedBatches(range(20), batch_size=2, seed=1)
    shard = BatchSamplerShard(BatchSampler(sampler, batch_size=2, drop_last=False), num_processes=2, process_index=0)
    loader = SimpleNamespace(batch_sampler=SkipBatchSampler(shard, skip_batches=1))
    set_epoch_below(loader, 3)
    assert sampler.epoch == 3


def test_skipped_batches_are_never_read() -> None:
    read: list[int] = []

    class Rows(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, row: int) -> int:
            read.append(row)
            return row

    loader = skip_first_batches(DataLoader(Rows(), batch_size=10), 9_000)
    assert next(iter(loader)).tolist() == list(range(90_000, 90_010))
    assert min(read) == 90_000
