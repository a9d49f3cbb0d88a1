"""Late interaction finds what stands together, lifts what is like the best hit, and keeps its weights whole."""

from pathlib import Path

import numpy as np
import pytest

from core.errors import ContractError
from retrieval.interaction import (
    HALF_STRETCH,
    WEIGHTING_FILE,
    Weighting,
    mix_scores,
    read_weighting,
    score_evenly,
    score_stretches,
    write_weighting,
)

EAST, NORTH, UP = np.eye(3, dtype=np.float32)
QUESTION = np.stack([EAST, NORTH])
EVEN = np.ones(2, dtype=np.float32)
NOTHING = np.zeros((0, 3), np.float32)


def lay(*places: int, length: int = 5 * HALF_STRETCH) -> np.ndarray:
    """A window of tokens that go up, but for one to the east and one to the north."""
    window = np.tile(UP, (length, 1))
    window[list(places)] = QUESTION[: len(places)]
    return window


def test_even_tokens_make_the_mean_of_the_nearest() -> None:
    windows = [np.stack([UP, EAST]), NOTHING, np.stack([EAST, UP, NORTH]), -QUESTION]
    assert score_evenly(QUESTION, windows).tolist() == [0.5, 0, 1, 0]
    assert score_evenly(NOTHING, windows).tolist() == [0] * 4


def test_words_that_stand_together_count_more_than_words_apart() -> None:
    windows = [lay(3, 7), lay(HALF_STRETCH - 1, HALF_STRETCH), lay(0, 4 * HALF_STRETCH), lay(1, length=2), NOTHING]
    assert score_stretches(QUESTION, EVEN, windows).tolist() == [1, 1, 0.5, 0.5, 0]
    assert score_evenly(QUESTION, windows[:3]).tolist() == [1, 1, 1]


def test_rare_tokens_count_more() -> None:
    rarity = np.array([3, 1], dtype=np.float32)
    assert score_stretches(QUESTION, rarity, [np.stack([EAST]), np.stack([NORTH])]).tolist() == [0.75, 0.25]


def test_what_is_like_the_best_hit_rises_and_the_best_keeps_its_place() -> None:
    fused = np.array([1, 0.8, 0.7, 0.69], dtype=np.float32)
    reranked = np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float32)
    likeness = np.eye(4, dtype=np.float32)
    likeness[0, 3] = likeness[3, 0] = 0.9
    likeness[0, 1] = likeness[1, 0] = 0.1
    plain = mix_scores(fused, reranked, likeness, 0.2, 0.0)
    assert plain.tolist() == pytest.approx((0.8 * fused + 0.2 * reranked).tolist())
    mixed = mix_scores(fused, reranked, likeness, 0.2, 0.2)
    assert np.argsort(-mixed).tolist() == [0, 3, 1, 2]
    assert mixed[0] == pytest.approx(0.8 * (0.8 * 1 + 0.2 * 0.1) + 0.2 * 0.5)
    assert mixed.max() <= 1
    assert mix_scores(fused, reranked, likeness, 0.0, 0.2).tolist() == pytest.approx(fused.tolist())
    assert mix_scores(fused[:1], reranked[:1], likeness[:1, :1], 0.2, 0.2).tolist() == pytest.approx([0.9])


def test_what_was_learned_is_kept_and_damage_is_refused(tmp_path: Path) -> None:
    assert read_weighting(tmp_path) is None
    rarity = np.array([0.5, 2, 4], dtype=np.float32)
    write_weighting(tmp_path, Weighting(rarity, 0.25, 0.15))
    found = read_weighting(tmp_path)
    assert found is not None
    assert found.rarity.tolist() == rarity.tolist()
    assert found.rerank_weight == pytest.approx(0.25)
    assert found.feedback == pytest.approx(0.15)
    write_weighting(tmp_path, Weighting(rarity, 2.0, 0.1))
    with pytest.raises(ContractError, match="shares of 0 to 1"):
        read_weighting(tmp_path)
    (tmp_path / WEIGHTING_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ContractError, match="cannot be read"):
        read_weighting(tmp_path)
