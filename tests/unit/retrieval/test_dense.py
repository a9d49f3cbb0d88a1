"""Dense search is exact: what brute force finds, with a chunk's best window, however chunks are divided and shared."""

import logging
import os
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval import dense
from retrieval.config import IndexDevice
from retrieval.dense import (
    DenseIndex,
    gather_candidates,
    join_vectors,
    make_dense,
    make_run,
    score_chunks,
    search_dense,
)
from retrieval.embedding import normalise_rows

WINDOWS = [1, 1, 3, 1, 2, 1, 1, 5]


def make_index() -> tuple[DenseIndex, NDArray[np.float32], NDArray[np.int64]]:
    """Eight chunks of one to five windows."""
    owners = np.repeat(np.arange(len(WINDOWS)), WINDOWS)
    vectors = normalise_rows(np.random.default_rng(3).standard_normal((len(owners), 16), dtype=np.float32))
    return divide(vectors, owners, [5]), vectors, owners


def divide(vectors: NDArray[np.float32], owners: NDArray[np.int64], cuts: list[int]) -> DenseIndex:
    """An index of several runs, cut before the given chunks."""
    bounds = [0, *cuts, len(WINDOWS)]
    inside = [(owners >= first) & (owners < last) for first, last in pairwise(bounds)]
    return make_dense(
        [
            make_run(vectors[mask], owners[mask] - first, IndexDevice.cpu)
            for mask, first in zip(inside, bounds[:-1], strict=True)
        ]
    )


def best_scores(vectors: NDArray[np.float32], owners: NDArray[np.int64], query: NDArray[np.float32]) -> list[float]:
    scores = vectors @ query
    return [float(scores[owners == chunk].max()) for chunk in range(len(WINDOWS))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3, 8, 100])
def test_search_finds_what_brute_force_finds(seed: int, count: int) -> None:
    index, vectors, owners = make_index()
    query = normalise_rows(np.random.default_rng(seed).standard_normal((1, 16), dtype=np.float32))[0]
    wanted = best_scores(vectors, owners, query)
    order = sorted(range(len(WINDOWS)), key=lambda chunk: -wanted[chunk])[:count]
    positions, scores = search_dense(index, query, count)
    assert positions.tolist() == order
    assert scores.tolist() == pytest.approx([wanted[chunk] for chunk in order], abs=1e-6)


def test_single_chunks_have_the_score_that_search_gives() -> None:
    index, vectors, owners = make_index()
    query = vectors[5]
    positions = np.array([7, 2, 0])
    wanted = best_scores(vectors, owners, query)
    assert score_chunks(index, query, positions).tolist() == pytest.approx([wanted[7], wanted[2], wanted[0]], abs=1e-6)
    assert score_chunks(index, query, positions[:0]).shape == (0,)


@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("shared_from", [1, 10**9])
def test_scores_do_not_depend_on_the_division(
    cuts: list[int], shared_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vectors, owners = make_index()
    query = vectors[4]
    whole = divide(vectors, owners, [])
    places, scores = search_dense(whole, query, 8)
    monkeypatch.setattr(dense, "SHARED_FROM_ROWS", shared_from)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    index = divide(vectors, owners, cuts)
    found, values = search_dense(index, query, 8)
    assert found.tolist() == places.tolist()
    assert values.tolist() == scores.tolist()  # to the bit
    assert score_chunks(index, query, places).tolist() == scores.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_only_allowed_chunks_are_found_and_as_many_as_there_are(seed: int) -> None:
    index, vectors, owners = make_index()
    chance = np.random.default_rng(seed)
    allowed = chance.random(len(WINDOWS)) < 0.4
    query = normalise_rows(chance.standard_normal((1, 16), dtype=np.float32))[0]
    wanted = best_scores(vectors, owners, query)
    order = sorted(np.flatnonzero(allowed).tolist(), key=lambda chunk: -wanted[chunk])
    assert search_dense(index, query, 3, allowed)[0].tolist() == order[:3]


def test_joined_runs_hold_what_was_kept() -> None:
    index, vectors, owners = make_index()
    kept = np.array([True, False, True, True, False])
    joined = join_vectors(list(index.runs), [kept, None], IndexDevice.cpu)
    chunks = [0, 2, 3, 5, 6, 7]
    assert np.array_equal(joined.vectors, vectors[np.isin(owners, chunks)])
    assert joined.owners.tolist() == np.repeat(np.arange(6), [WINDOWS[chunk] for chunk in chunks]).tolist()


def test_a_gpu_that_is_wanted_and_not_there_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "open_card", lambda: None)
    vectors = make_index()[1]
    with caplog.at_level(logging.WARNING):
        assert dense.place_on_gpu(vectors, IndexDevice.auto) is None
        assert caplog.records == []
        assert dense.place_on_gpu(vectors, IndexDevice.gpu) is None
    assert "the CPU searches instead" in caplog.text


def test_what_the_words_found_joins_the_nearest_once_and_with_its_cosine() -> None:
    vectors = np.eye(6, dtype=np.float32)
    index = make_dense([make_run(vectors, np.arange(6), IndexDevice.cpu)])
    query = normalise_rows(np.array([[6, 5, 4, 3, 2, 1]], dtype=np.float32))[0]
    places, cosines = gather_candidates(index, query, 2, np.array([1, 5, 3]))
    assert places.tolist() == [0, 1, 3, 5]
    assert np.allclose(cosines, query[[0, 1, 3, 5]])
