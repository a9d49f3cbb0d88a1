"""train.sampler: every row once, batches of like length, their order random and repeatable."""

from hypothesis import given
from hypothesis import strategies as st

from train.sampler import LengthGroupedBatches


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 99))
def test_every_row_comes_once(lengths: list[int], batch_size: int, seed: int) -> None:
    sampler = LengthGroupedBatches(lengths, batch_size, seed)
    assert len(sampler) == len(lengths)
    assert sorted(sampler) == list(range(len(lengths)))


def test_batches_hold_rows_of_like_length_in_no_order_of_length() -> None:
    lengths = [10 if row % 2 else 500 + row for row in range(128)]
    rows = list(LengthGroupedBatches(lengths, 4, seed=3))
    batches = [[lengths[row] for row in rows[at : at + 4]] for at in range(0, 128, 4)]
    assert all((max(batch) <= 10) or (min(batch) >= 500) for batch in batches)
    means = [sum(batch) for batch in batches]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    halves = [sum(mean > 100 for mean in part) for part in (means[:16], means[16:])]
    assert min(halves) >= 4, "long and short rows are mixed over the epoch"


def test_epochs_differ_and_repeat() -> None:
    lengths = list(range(64))
    sampler = LengthGroupedBatches(lengths, 4, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(second) == sorted(first)
    again = LengthGroupedBatches(lengths, 4, seed=1)
    again.set_epoch(1)
    assert list(again) == second
    assert list(LengthGroupedBatches(lengths, 4, seed=2)) != first


def test_a_short_batch_comes_last() -> None:
    rows = list(LengthGroupedBatches([1, 2, 3, 4, 5, 6, 7], 3, seed=0))
    assert len(rows) == 7
    assert rows[6] == 6, "the longest row is left over after sorting, and stands alone at the end"


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=80), st.integers(1, 5), st.integers(2, 4))
def test_processes_take_turns_evenly_and_read_no_row_twice(lengths: list[int], batch_size: int, processes: int) -> None:
    rows = list(sampler := LengthGroupedBatches(lengths, batch_size, 7, processes))
    assert len(rows) == len(sampler)
    assert len(rows) % (batch_size * processes) == 0
    assert rows[: len(lengths)] == list(LengthGroupedBatches(lengths, batch_size, 7))
    assert set(rows[len(lengths) :]) <= {len(lengths)}
