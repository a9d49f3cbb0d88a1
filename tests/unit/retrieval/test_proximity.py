"""Neighbouring words of a question count where a text has them in that order and near each other, and not elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.lexical import build_lexical, build_run, make_lexical
from retrieval.proximity import GAP, list_pairs, score_pairs

TEXTS = (
    "The moon landing was seen by many.",
    "The landing on the moon.",
    "A moon. It shone on the landing.",
    "Ducks swim.",
)
INDEX = build_lexical(TEXTS)


def score(query: str, *texts: str) -> list[float]:
    return [float(value) for value in score_pairs(list_pairs(INDEX, query), texts, INDEX.language)]


def test_the_second_word_comes_soon_after_the_first() -> None:
    found = score("moon landings", *TEXTS, "landing moon", "", "moon a the landing", "moon a the b landing")
    assert found == [1, 0, 0, 0, 0, 0, 1, 0]
    assert GAP == 3


def test_a_rare_pair_counts_more_and_all_together_one() -> None:
    pairs = list_pairs(INDEX, "the moon landing seen by ducks")
    assert list(pairs) == [("moon", "land"), ("land", "seen"), ("seen", "duck")]
    assert sum(pairs.values()) == pytest.approx(1)
    assert pairs["seen", "duck"] > pairs["land", "seen"] > pairs["moon", "land"]
    both, first = score("moon landing seen", "moon landing seen", "moon landing")
    assert both == 1
    assert 0 < first < 0.5


@pytest.mark.parametrize("query", ["moon", "moon moon", "moon rocket", "the of", "rocket science", "?"])
def test_a_question_without_two_known_neighbours_has_no_pairs(query: str) -> None:
    assert list_pairs(INDEX, query) == {}


def test_words_are_those_of_the_stores_language() -> None:
    texts = ["Die Häuser am großen Fluss brannten.", "Ein Haus. Es brannte nichts am Fluss."]
    index = make_lexical([build_run(texts, "german")], language="german")
    pairs = list_pairs(index, "Haus am Fluss")
    assert score_pairs(pairs, texts, "german").tolist() == [1, 0]
    assert score_pairs(pairs, texts, "english").tolist() == [0, 0]


@given(st.lists(st.sampled_from(["moon", "landing", "seen", "ducks", "the", "swim"]), max_size=9), st.integers(0, 9))
def test_more_text_never_counts_less_and_the_range_is_kept(words: list[str], cut: int) -> None:
    part, whole = score("moon landing seen swim", " ".join(words[:cut]), " ".join(words))
    assert 0 <= part <= whole <= 1
