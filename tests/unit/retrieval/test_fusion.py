"""Fusion obeys its laws: range, order by each side alone, monotony, independence of the candidates' order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.config import FusionMethod
from retrieval.fusion import fuse_scores, mix_dense, reciprocal_ranks, scale

COSINES = st.integers(-1000, 1000).map(lambda value: value / 1000)
BM25 = st.one_of(st.just(0.0), st.integers(1, 40_000).map(lambda value: value / 1000))
PAIRS = st.lists(st.tuples(COSINES, BM25), min_size=1, max_size=40)
METHODS = st.sampled_from(FusionMethod)
WEIGHTS = st.integers(0, 10).map(lambda value: value / 10)


def fuse(pairs: list[tuple[float, float]], method: FusionMethod, weight: float) -> NDArray[np.float32]:
    dense, lexical = np.array(pairs, dtype=np.float32).T
    return fuse_scores(dense, lexical, method, weight)


@given(PAIRS, METHODS, WEIGHTS)
def test_scores_lie_between_0_and_1(pairs: list[tuple[float, float]], method: FusionMethod, weight: float) -> None:
    scores = fuse(pairs, method, weight)
    assert scores.shape == (len(pairs),)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    assert (scores <= 1 + 1e-6).all()


@given(PAIRS, METHODS, st.sampled_from([0, 1]))
def test_a_weight_of_0_or_1_orders_by_one_side(
    pairs: list[tuple[float, float]], method: FusionMethod, weight: int
) -> None:
    scores = fuse(pairs, method, weight)
    side = [pair[1 - weight] for pair in pairs]
    for one in range(len(pairs)):
        for two in range(len(pairs)):
            if side[one] > side[two]:
                assert scores[one] > scores[two]


@given(PAIRS, METHODS, WEIGHTS)
def test_what_is_better_on_both_sides_is_not_worse(
    pairs: list[tuple[float, float]], method: FusionMethod, weight: float
) -> None:
    scores = fuse(pairs, method, weight)
    for one, (dense_one, lexical_one) in enumerate(pairs):
        for two, (dense_two, lexical_two) in enumerate(pairs):
            if dense_one >= dense_two and lexical_one >= lexical_two:
                assert scores[one] >= scores[two] - 1e-6


@given(PAIRS, METHODS, WEIGHTS, st.integers(0, 99))
def test_the_order_of_candidates_does_not_matter(
    pairs: list[tuple[float, float]], method: FusionMethod, weight: float, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(pairs))
    shuffled = fuse([pairs[place] for place in order], method, weight)
    assert np.allclose(shuffled, fuse(pairs, method, weight)[order], atol=1e-6)


def test_scaling_keeps_distances_from_the_least() -> None:
    assert scale(np.array([-1, 0, 1], dtype=np.float32), -1).tolist() == [0, 0.5, 1]
    assert scale(np.array([0, 0], dtype=np.float32), 0).tolist() == [0, 0]
    assert scale(np.zeros(0, dtype=np.float32), 0).shape == (0,)


def test_equal_scores_share_a_rank() -> None:
    ranks = reciprocal_ranks(np.array([5, 9, 5], dtype=np.float32))
    assert ranks.tolist() == [pytest.approx(61 / 62), 1, pytest.approx(61 / 62)]


def test_a_span_weight_of_0_or_1_takes_one_cosine() -> None:
    whole, spans = np.array([0.1, 0.5], np.float32), np.array([0.4, 0.3], np.float32)
    assert mix_dense(whole, spans, 0).tolist() == whole.tolist()
    assert mix_dense(whole, spans, 1).tolist() == spans.tolist()
    assert mix_dense(whole, spans, 0.5).tolist() == pytest.approx([0.25, 0.4])
