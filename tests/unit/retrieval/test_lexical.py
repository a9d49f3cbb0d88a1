"""Lexical search stems, drops stop words, gives 0 to what shares no word, and weighs as BM25 says."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.lexical import build_lexical, pick_best, score_lexical, split_words

TEXTS = [
    "The pump has a warranty of 26 months.",
    "Pumping water needs electricity.",
    "Error E07 means that the filter is blocked. Clean the filters.",
    "Straße und Größe: ein Maß für Wärme",
]


def test_words_are_folded_stemmed_and_filtered() -> None:
    assert split_words("The pumps were PUMPING") == ["pump", "pump"]
    assert split_words("Order ACME-RET-2, 26 months") == ["order", "acm", "ret", "2", "26", "month"]
    assert split_words("ﬁlter STRASSE straße") == ["filter", "strass", "strass"]
    assert split_words("Kraków, Curaçao, Łódź; й") == ["krakow", "curacao", "łodz", "й"]  # accents of Latin letters go


def test_a_query_of_stop_words_alone_keeps_them() -> None:
    assert split_words("to be or not to be") == ["to", "be", "or", "not", "to", "be"]


@pytest.mark.parametrize(("query", "best"), [("warranties", 0), ("e07", 2), ("filter cleaning", 2), ("GRÖSSE", 3)])
def test_the_best_text_shares_the_rare_words(query: str, best: int) -> None:
    assert score_lexical(build_lexical(TEXTS), query).argmax() == best


def test_what_shares_no_word_scores_0() -> None:
    scores = score_lexical(build_lexical(TEXTS), "pump")
    assert (scores > 0).tolist() == [True, True, False, False]
    assert not score_lexical(build_lexical(TEXTS), "zebra").any()


@pytest.mark.parametrize("texts", [[], ["", "  ", "…"]])
def test_an_index_without_words_finds_nothing(texts: list[str]) -> None:
    assert score_lexical(build_lexical(texts), "pump").tolist() == [0] * len(texts)


def test_scores_are_those_of_the_formula() -> None:
    texts = ["pump pump water", "water", "pump grass grass grass grass", "duck"]
    found = score_lexical(build_lexical(texts), "pump")
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    wanted = [idf * 2 / (2 + 0.9 * (0.4 + 0.6 * 3 / 2.5)), 0, idf / (1 + 0.9 * (0.4 + 0.6 * 5 / 2.5)), 0]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)
    assert score_lexical(build_lexical(texts), "pump pumps").tolist() == pytest.approx(
        [2 * x for x in wanted], rel=1e-6
    )


def test_the_best_come_first_and_ties_in_order() -> None:
    scores = np.array([0, 2, 1, 2, 0, 3], dtype=np.float32)
    assert pick_best(scores, 10).tolist() == [5, 1, 3, 2]
    assert pick_best(scores, 2).tolist()[0] == 5
    assert len(pick_best(scores, 2)) == 2
    assert pick_best(np.zeros(3, dtype=np.float32), 2).tolist() == []


def test_threads_do_not_disturb_each_other() -> None:
    index = build_lexical(TEXTS)
    queries = ["warranties", "filter cleaning", "electricity pumping"] * 50
    wanted = [score_lexical(index, query).tolist() for query in queries]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda query: score_lexical(index, query).tolist(), queries))
    assert found == wanted
