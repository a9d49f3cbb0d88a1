"""Examples hold what answers beside what only looks like it; nDCG and its interval are what the papers say."""

import numpy as np
import pytest

from retrieval.config import SearchConfig
from retrieval.judging import resample_difference
from retrieval.mining import find_candidates, measure_ndcg, mine_examples
from retrieval.question_set import QuestionSet
from tests.fakes.hash_embedder import HashEmbedder

THINGS = ("pump", "valve", "filter", "light", "desk", "pond")
SET = QuestionSet(
    "set",
    [(thing.title(), f"The {thing} is number {number}.") for number in range(3) for thing in THINGS],
    [f"which number has the {thing}" for thing in THINGS],
    [frozenset({place, place + 6}) for place in range(6)],
)


def test_negatives_are_found_by_the_search_and_never_answer() -> None:
    seen: list[tuple[int, int]] = []
    found = find_candidates(SET, HashEmbedder(), SearchConfig(), lambda done, total: seen.append((done, total)))
    assert seen == [(18, 18)]
    assert all((np.diff(candidates.fused) <= 0).all() for candidates in found)
    assert {int(place) % 6 for place in found[2].places[:3]} == {2}
    examples = mine_examples(SET, found, 2, seed=1)
    assert len(examples) == 6
    texts = [f"{title}\n{text}" for title, text in SET.passages]
    for example in examples:
        right = {texts[place] for place in SET.relevant[SET.questions.index(example.question)]}
        assert example.positive in right
        assert len(set(example.negatives)) == 2
        assert not right & set(example.negatives)
    assert mine_examples(SET, found, 2, seed=1) == examples != mine_examples(SET, found, 2, seed=2)
    assert mine_examples(SET, found, 30, seed=1) == []


def test_ndcg_is_the_papers() -> None:
    assert measure_ndcg([3, 1, 2], frozenset({3})) == 1
    assert measure_ndcg([1, 3, 2], frozenset({3})) == pytest.approx(1 / np.log2(3))
    assert measure_ndcg([1, 2], frozenset({3})) == 0
    assert measure_ndcg([3, 1, 4], frozenset({3, 4})) == pytest.approx((1 + 0.5) / (1 + 1 / np.log2(3)))
    assert measure_ndcg([*range(10), 99], frozenset({99})) == 0


def test_an_interval_holds_the_difference_and_nought_where_nothing_changed() -> None:
    before = np.linspace(0, 1, 50)
    low, high = resample_difference(before, before + 0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    noise = np.random.default_rng(1).normal(0, 0.2, 50)
    low, high = resample_difference(before, before + noise - noise.mean())
    assert low < 0 < high
