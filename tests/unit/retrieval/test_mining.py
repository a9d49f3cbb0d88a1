"""Examples hold what answers beside what only looks like it; nDCG and its interval are what the papers say."""

import numpy as np
import pytest

from retrieval.config import SearchConfig
from retrieval.judging import resample_difference
from retrieval.mining import find_candidates, mine_examples, rank_questions
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


def test_words_are_compared_in_the_language_of_the_set() -> None:
    texts = ["Die Häuser stehen am Fluss.", "Der Garten liegt am Hang.", "Ein Weg führt hin."]
    questions = QuestionSet("set", [(None, text) for text in texts], ["Haus"], [frozenset({0})])
    by_words = SearchConfig(dense_weight=0.0)
    for language, finds in (("german", True), ("english", False)):
        (found,) = find_candidates(questions, HashEmbedder(), by_words, lambda _done, _total: None, language)
        assert bool(found.fused[0] > found.fused[1]) is finds
        assert not finds or found.places[0] == 0


def test_an_interval_holds_the_difference_and_nought_where_nothing_changed() -> None:
    before = np.linspace(0, 1, 50)
    low, high = resample_difference(before, before + 0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    noise = np.random.default_rng(1).normal(0, 0.2, 50)
    low, high = resample_difference(before, before + noise - noise.mean())
    assert low < 0 < high


def test_ranked_questions_have_right_and_wrong_among_the_best() -> None:
    found = find_candidates(SET, HashEmbedder(), SearchConfig(), lambda _done, _total: None)
    ranked = rank_questions(SET, found, 4, 5, seed=1)
    assert len(ranked) == 5
    for one in ranked:
        place = SET.questions.index(one.question)
        assert one.passages == [SET.passages[number] for number in found[place].places[:4]]
        assert one.fused.tolist() == found[place].fused[:4].tolist()
        assert 0 < one.relevant.sum() < 4
        assert all(
            (SET.passages.index(passage) in SET.relevant[place]) == is_relevant
            for passage, is_relevant in zip(one.passages, one.relevant, strict=True)
        )
    assert [one.question for one in rank_questions(SET, found, 4, 5, seed=1)] == [one.question for one in ranked]
    assert rank_questions(SET, found, 1, 5, seed=1) == []  # nothing to tell apart
