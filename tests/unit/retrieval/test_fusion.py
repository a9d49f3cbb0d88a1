"""Fusion obeys its laws: range, order by each side alone, monotony, independence of the candidates' order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.config import FusionMethod, IndexDevice, SearchConfig
from retrieval.dense import build_dense
from retrieval.fusion import ScoredChunks, compare, fuse_scores, mix_dense, order_chunks, reciprocal_ranks, scale

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


@given(PAIRS, METHODS, WEIGHTS, WEIGHTS, st.integers(0, 99))
def test_word_pairs_have_their_share_of_the_lexical_side(
    pairs: list[tuple[float, float]], method: FusionMethod, weight: float, share: float, seed: int
) -> None:
    dense, lexical = np.array(pairs, dtype=np.float32).T
    near = np.random.default_rng(seed).random(len(pairs), dtype=np.float32)
    found = fuse_scores(dense, lexical, method, weight, near, share)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-6).all()
    words = fuse_scores(dense, lexical, method, 0)
    wanted = fuse(pairs, method, weight) + (1 - weight) * share * (near - words)
    assert np.allclose(found, wanted, atol=1e-5)


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


EAST, NORTH = np.eye(2, dtype=np.float32)
SLANT = np.array([0.8, 0.6], dtype=np.float32)


def find(windows: list[list[NDArray[np.float32]]], first: int, lexical: list[float] | None = None) -> ScoredChunks:
    """Candidates whose dense scores fall from the first on; the windows lie in two indexes, side by side."""
    parts = []
    for part in (windows[:first], windows[first:]):
        owners = np.repeat(np.arange(len(part)), [len(group) for group in part])
        vectors = np.stack([window for group in part for window in group])
        parts.append((build_dense(vectors, owners, IndexDevice.cpu), np.arange(len(part), dtype=np.int64)))
    dense = np.linspace(0.6, 0.5, len(windows), dtype=np.float32)
    words = np.array(lexical or [0] * len(windows), dtype=np.float32)
    return ScoredChunks(np.arange(len(windows)), dense, dense, words, tuple(parts))


def test_what_is_like_the_best_hit_rises_across_indexes() -> None:
    found = find([[EAST], [NORTH], [-EAST], [SLANT]], first=2)
    assert compare(found, 0).tolist() == pytest.approx([1, 0, 0, 0.8])
    assert compare(found, 3).tolist() == pytest.approx([0.8, 0.6, 0, 1])
    plain, before = order_chunks(found, SearchConfig(likeness_weight=0, dense_weight=1))
    assert plain.tolist() == [0, 1, 2, 3]
    order, scores = order_chunks(found, SearchConfig(likeness_weight=0.5, dense_weight=1))
    assert order.tolist() == [0, 3, 1, 2]
    near = [1, 0, 0, 0.8]
    assert scores.tolist() == pytest.approx(0.5 * before + 0.5 * np.array(near))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_chunk_of_many_windows_lies_where_they_lie_together() -> None:
    found = find([[EAST, NORTH], [NORTH], [-NORTH]], first=1)
    both = (EAST + NORTH) / np.sqrt(2)
    assert compare(found, 0).tolist() == pytest.approx([float(both @ EAST), float(both @ NORTH), 0])
    assert compare(found, 1).tolist() == pytest.approx([1, 1, 0])  # of a candidate the nearest window counts


def test_words_alone_know_no_likeness() -> None:
    found = find([[EAST], [NORTH], [EAST]], first=1, lexical=[3, 2, 1])
    for search in (SearchConfig(dense_weight=0, likeness_weight=0.5), SearchConfig()):
        order, scores = order_chunks(found, search)
        assert order.tolist() == [0, 1, 2]
        plain = ScoredChunks(found.numbers, found.dense, found.spans, found.lexical)  # nothing is known of vectors
        assert scores.tolist() == order_chunks(plain, search)[1].tolist()
    nothing = ScoredChunks(found.numbers[:0], found.dense[:0], found.spans[:0], found.lexical[:0], found.places[:0])
    assert order_chunks(nothing, SearchConfig(likeness_weight=0.5))[0].tolist() == []
