"""Weights are learned from texts and rankings: rare tokens count, and a reranker as much as it helps."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.interaction import Weighting
from retrieval.mining import RankedQuestion
from retrieval.weighing import FEEDBACKS, RERANK_WEIGHTS, learn_weighting

PASSAGES = 12


class FakeReranker:
    """Knows which passage answers, or says the same of all; a passage's text is its number."""

    vocabulary_size = PASSAGES + 1

    def __init__(self, *, is_right: bool, is_like: bool) -> None:
        self._is_right = is_right
        self._is_like = is_like
        self.weighting: Weighting | None = None

    def list_tokens(self, _heading: str | None, text: str) -> list[int]:
        return [PASSAGES, int(text), int(text)]

    def take_weighting(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def score(self, query: str, passages: Sequence[tuple[str | None, str]]) -> NDArray[np.float32]:
        return np.array([float(self._is_right and text in query.split()) for _, text in passages], np.float32)

    def average(self, passages: Sequence[tuple[str | None, str]]) -> NDArray[np.float32]:
        is_odd = np.array([int(text) % 2 == 1 and self._is_like for _, text in passages])
        return np.where(is_odd[:, None], [0.6, 0.8], [1.0, 0.0]).astype(np.float32)


def make_questions(count: int, seed: int) -> list[RankedQuestion]:
    """Questions that two passages of one kind answer: the first hit, and one further down."""
    chance = np.random.default_rng(seed)
    questions = []
    for _ in range(count):
        order = chance.permutation(PASSAGES)
        other = int(chance.choice([place for place in range(3, PASSAGES) if order[place] % 2 == order[0] % 2]))
        relevant = np.isin(np.arange(PASSAGES), [0, other])
        passages: list[tuple[str | None, str]] = [(None, str(number)) for number in order]
        words = " ".join(str(number) for number in order[relevant])
        questions.append(RankedQuestion(words, passages, np.linspace(1, 0.7, PASSAGES, dtype=np.float32), relevant))
    return questions


def learn(*, is_right: bool, is_like: bool) -> tuple[Weighting, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    sets = [make_questions(30, 1), make_questions(5, 2)]
    reranker = FakeReranker(is_right=is_right, is_like=is_like)
    return learn_weighting(sets, reranker, lambda done, total: seen.append((done, total))), seen  # type: ignore[arg-type]


def test_a_token_of_every_passage_counts_least() -> None:
    weighting, seen = learn(is_right=True, is_like=False)
    assert (seen[0], seen[-1]) == ((1, 35), (35, 35))
    assert weighting.rarity.shape == (PASSAGES + 1,)
    assert weighting.rarity.argmin() == PASSAGES
    assert weighting.rarity[0] == pytest.approx(np.log(1 + PASSAGES / 2))


def test_weights_are_as_large_as_they_help() -> None:
    right, _ = learn(is_right=True, is_like=False)
    assert right.rerank_weight >= RERANK_WEIGHTS[1]
    like, _ = learn(is_right=False, is_like=True)
    assert like.feedback >= FEEDBACKS[2]
