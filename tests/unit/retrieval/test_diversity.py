"""Maximal marginal relevance picks what is relevant and new."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.layout import DataDir
from retrieval.database import open_database
from retrieval.diversity import pick_diverse, read_vectors
from retrieval.store import NewChunk, NewDocument, commit_documents, make_store, read_chunks
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans

TWINS = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
RELEVANCE = np.array([0.9, 0.89, 0.6, 0.2], dtype=np.float32)


def test_a_repetition_gives_way_to_something_new() -> None:
    assert pick_diverse(RELEVANCE, TWINS, 2, 1.0) == [0, 1]
    assert pick_diverse(RELEVANCE, TWINS, 2, 0.5) == [0, 2]
    assert pick_diverse(RELEVANCE, TWINS, 9, 0.5) == [0, 2, 3, 1]
    assert pick_diverse(RELEVANCE[:0], TWINS[:0], 3, 0.5) == []


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 15))
def test_picks_are_distinct_begin_with_the_best_and_k_only_cuts(
    size: int, seed: int, mmr_lambda: float, count: int
) -> None:
    random = np.random.default_rng(seed)
    relevance = random.random(size, dtype=np.float32)
    vectors = random.standard_normal((size, 4), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    picked = pick_diverse(relevance, vectors, count, mmr_lambda)
    assert len(set(picked)) == len(picked) == min(size, count)
    assert relevance[picked[0]] == relevance.max()
    assert pick_diverse(relevance, vectors, size, mmr_lambda)[: len(picked)] == picked
    if mmr_lambda == 1:
        assert picked == sorted(range(size), key=lambda place: (-relevance[place], place))[:count]


def test_stored_vectors_come_in_the_order_asked_for(tmp_path: object) -> None:
    engine = open_database(DataDir(tmp_path).database)  # type: ignore[arg-type]
    store = make_store(engine, "acme", EmbedderIdentity("tiny", 3, "0" * 64))
    chunks = tuple(
        NewChunk(n, n + 1, None, None, "x", ChunkVectors(np.array(rows, np.float32), no_spans(3)))
        for n, rows in enumerate([[[1, 0, 0]], [[0, 1, 0], [0, 0, 1]]])
    )
    commit_documents(engine, store, [NewDocument("a", "0" * 64, "1", 2, "xx", chunks)])
    first, second = (row.id for row in read_chunks(engine, store)[1])
    vectors = read_vectors(engine, [second, 999, first], 3)
    assert np.allclose(vectors, [[0, 0.5**0.5, 0.5**0.5], [0, 0, 0], [1, 0, 0]])
    engine.dispose()
