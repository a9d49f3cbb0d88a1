"""Spans are scored as cosines, exactly, however chunks are divided into runs; joining loses none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.embedding import cut_spans, normalise_rows
from retrieval.spans import LARGEST, SpanRun, join_spans, make_span_run, quantise, score_spans
from retrieval.vectors import no_spans

DIMENSION = 24


def make_chunks(seed: int, sizes: list[int], dimension: int = DIMENSION) -> list[NDArray[np.int8]]:
    chance = np.random.default_rng(seed)
    return [quantise(chance.standard_normal((size, dimension), dtype=np.float32)) for size in sizes]


def make_query(seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    rows = normalise_rows(np.random.default_rng(seed).standard_normal((1, dimension), dtype=np.float32))
    return np.asarray(rows[0])


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(st.integers(0, 999), SIZES)
def test_the_best_span_counts_and_a_chunk_without_keeps_its_own_score(seed: int, sizes: list[int]) -> None:
    chunks, query = make_chunks(seed, sizes), make_query(seed)
    missing = np.linspace(-1, 1, len(sizes), dtype=np.float32)
    scores = score_spans([make_span_run(chunks, DIMENSION)], query, np.arange(len(sizes)), missing)
    for place, chunk in enumerate(chunks):
        if not len(chunk):
            assert scores[place] == missing[place]
            continue
        rows = chunk.astype(np.float64)
        assert scores[place] == pytest.approx((rows @ query / np.linalg.norm(rows, axis=1)).max(), abs=0.02)


@given(st.integers(0, 999), SIZES, st.data())
def test_scores_are_the_same_to_the_bit_in_any_runs(seed: int, sizes: list[int], data: st.DataObject) -> None:
    chunks, query = make_chunks(seed, sizes), make_query(seed)
    places = np.array(data.draw(st.permutations(range(len(sizes)))))
    missing = np.zeros(len(sizes), dtype=np.float32)
    whole = score_spans([make_span_run(chunks, DIMENSION)], query, np.arange(len(sizes)), missing)
    cut = data.draw(st.integers(0, len(sizes)))
    parts = [make_span_run(part, DIMENSION) for part in (chunks[:cut], chunks[cut:])]
    assert score_spans(parts, query, places, missing).tolist() == whole[places].tolist()


@given(st.integers(0, 999), SIZES, st.data())
def test_joining_keeps_what_stays(seed: int, sizes: list[int], data: st.DataObject) -> None:
    chunks = make_chunks(seed, sizes)
    stays = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))), dtype=np.bool_)
    other = make_chunks(seed + 1, [2, 0, 3])
    joined = join_spans([make_span_run(chunks, DIMENSION), make_span_run(other, DIMENSION)], [stays, None])
    wanted = make_span_run([*(c for c, keep in zip(chunks, stays, strict=True) if keep), *other], DIMENSION)
    for name in SpanRun.__dataclass_fields__:
        assert np.array_equal(getattr(joined, name), getattr(wanted, name))


def test_large_dimensions_are_added_up_in_blocks() -> None:
    (chunk,), query = make_chunks(7, [3], 3000), make_query(7, 3000)
    (score,) = score_spans([make_span_run([chunk], 3000)], query, np.zeros(1, np.int64), np.zeros(1, np.float32))
    rows = chunk.astype(np.float64)
    assert score == pytest.approx((rows @ query / np.linalg.norm(rows, axis=1)).max(), abs=0.005)


def test_rounding_keeps_the_direction_and_zeros_stay_zeros() -> None:
    rows = np.random.default_rng(3).standard_normal((50, 384), dtype=np.float32)
    rounded = quantise(rows)
    assert (np.abs(rounded.astype(np.int64)).max(axis=1) == LARGEST).all()
    assert ((normalise_rows(rows) * normalise_rows(rounded.astype(np.float32))).sum(axis=1) > 0.9995).all()
    assert not quantise(np.zeros((1, 4), dtype=np.float32)).any()
    run = make_span_run([np.zeros((1, 4), dtype=np.int8), no_spans(4)], 4)
    query = np.array([1, 0, 0, 0], dtype=np.float32)
    assert score_spans([run], query, np.arange(2), np.full(2, 0.5, np.float32)).tolist() == [0, 0.5]


@settings(max_examples=200)
@given(st.integers(0, 5), st.integers(0, 300), st.integers(1, 40))
def test_spans_cover_all_tokens_and_overlap_by_half(first: int, tokens: int, length: int) -> None:
    spans = cut_spans(first, first + tokens, length)
    assert sorted({place for start, end in spans for place in range(start, end)}) == list(range(first, first + tokens))
    assert len(set(spans)) == len(spans)
    if tokens > length:
        assert {end - start for start, end in spans} == {length}
        assert len(spans) <= tokens // max(1, length // 2) + 2
