"""Dense search is exact: what brute force finds, with a chunk's best window, before and after saving."""

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval import dense
from retrieval.config import IndexDevice
from retrieval.dense import DenseIndex, build_dense, load_dense, save_dense, score_chunks, search_dense
from retrieval.embedding import normalise_rows

WINDOWS = [1, 1, 3, 1, 2, 1, 1, 5]


def make_index() -> tuple[DenseIndex, NDArray[np.float32], NDArray[np.int64]]:
    """Eight chunks of one to five windows."""
    owners = np.repeat(np.arange(len(WINDOWS)), WINDOWS)
    vectors = normalise_rows(np.random.default_rng(3).standard_normal((len(owners), 16), dtype=np.float32))
    return build_dense(vectors, owners, IndexDevice.cpu), vectors, owners


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


def test_a_saved_index_gives_the_same_answers(tmp_path: Path) -> None:
    index, vectors, _ = make_index()
    save_dense(index, tmp_path)
    loaded = load_dense(tmp_path, IndexDevice.cpu)
    for query in vectors[:4]:
        wanted_positions, wanted_scores = search_dense(index, query, 5)
        positions, scores = search_dense(loaded, query, 5)
        assert positions.tolist() == wanted_positions.tolist()
        assert scores.tolist() == wanted_scores.tolist()


def test_a_gpu_that_is_wanted_and_not_there_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "find_gpu", lambda: False)
    flat = make_index()[0].flat
    with caplog.at_level(logging.WARNING):
        assert dense.place_index(flat, IndexDevice.auto) is flat
        assert caplog.records == []
        assert dense.place_index(flat, IndexDevice.gpu) is flat
    assert "the CPU searches instead" in caplog.text
