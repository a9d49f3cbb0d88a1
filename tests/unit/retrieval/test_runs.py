"""Joining runs keeps vectors in memory once, and joins as far as sizes ask for."""

import tracemalloc

import numpy as np
import pytest

from retrieval.config import IndexDevice
from retrieval.embedding import normalise_rows
from retrieval.runs import ChunkRun, build_chunk_run, join_runs
from retrieval.store import ChunkRow
from retrieval.vectors import ChunkVectors, no_spans


def make_runs(sizes: list[int], dimension: int = 8) -> list[ChunkRun]:
    chance = np.random.default_rng(0)
    runs, number = [], 1
    for size in sizes:
        vectors = normalise_rows(chance.standard_normal((size, dimension), dtype=np.float32))
        rows = [
            ChunkRow(number + place, None, "pump", ChunkVectors(vectors[place : place + 1], no_spans(dimension)))
            for place in range(size)
        ]
        runs.append(build_chunk_run(rows, IndexDevice.cpu))
        number += size
    return runs


@pytest.mark.parametrize(
    ("sizes", "largest", "wanted"),
    [
        ([5, 5, 5, 5], None, [20]),
        ([9, 4, 1], None, [9, 4, 1]),
        ([9, 4, 2], None, [15]),
        ([20, 4, 2], None, [20, 6]),
        ([3, 3, 1], None, [6, 1]),
        ([9, 4, 2], 6, [9, 6]),
        ([9, 4, 2], 5, [9, 4, 2]),
    ],
)
def test_runs_are_joined_until_each_is_more_than_twice_the_next(
    sizes: list[int], largest: int | None, wanted: list[int]
) -> None:
    live = np.ones(sum(sizes), dtype=bool)
    runs, kept = join_runs(make_runs(sizes), live, IndexDevice.cpu, largest=largest)
    assert [len(run.numbers) for run in runs] == wanted
    assert kept.all()
    assert np.concatenate([run.numbers for run in runs]).tolist() == list(range(1, sum(sizes) + 1))


def test_a_join_holds_vectors_once() -> None:
    tracemalloc.start()
    try:
        runs = make_runs([300] * 8, dimension=1024)
        total = sum(run.vectors.vectors.nbytes for run in runs)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        (joined,), _ = join_runs(runs, np.ones(2400, dtype=bool), IndexDevice.cpu)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert joined.vectors.vectors.nbytes == total
    assert runs == []
    assert peak - before < total * 1.5  # the joined ones are allocated at once, and the others go one by one
