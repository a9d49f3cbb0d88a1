"""Lexical search stems, drops stop words, gives 0 to what shares no word, and survives saving."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retrieval.lexical import build_lexical, load_lexical, pick_best, save_lexical, score_lexical, split_words

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
def test_an_index_without_words_finds_nothing(texts: list[str], tmp_path: Path) -> None:
    index = build_lexical(texts)
    save_lexical(index, tmp_path)
    for one in (index, load_lexical(tmp_path, len(texts))):
        assert score_lexical(one, "pump").tolist() == [0] * len(texts)


def test_a_saved_index_gives_the_same_scores(tmp_path: Path) -> None:
    index = build_lexical(TEXTS)
    save_lexical(index, tmp_path)
    loaded = load_lexical(tmp_path, len(TEXTS))
    for query in ("pump", "filter warranty", "nothing"):
        assert score_lexical(loaded, query).tolist() == score_lexical(index, query).tolist()


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
