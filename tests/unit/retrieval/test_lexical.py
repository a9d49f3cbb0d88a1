"""Lexical search stems, drops stop words, gives 0 to what shares no word, and weighs as BM25 says."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.config import check_language
from retrieval.lexical import build_lexical, build_run, make_lexical, pick_best, score_lexical, split_words
from retrieval.stop_words import STOP_WORDS

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


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("german", "Die Häuser für die Pumpen", ["haus", "pump"]),
        ("french", "Les pompes étaient à l'arrêt", ["pomp", "arret"]),
        ("spanish", "¿Cuándo se cambian los filtros?", ["cambi", "filtr"]),
        ("finnish", "pumpun takuu", ["pumpu", "taku"]),
        ("english", "Die Pumpen", ["die", "pumpen"]),
        ("hindi", "पुस्तकालय, किताबें", ["पुस्तकालय", "किताब"]),
        ("tamil", "நூலகம்", ["நூலகம்"]),
        ("arabic", "كِتَابٌ", ["كتاب"]),
        ("russian", "за\u0301мок й", ["замок", "й"]),
        ("english", "שָׁלוֹם־עולם", ["שלום", "עולם"]),
    ],
)
def test_words_are_compared_as_their_language_has_them(language: str, text: str, words: list[str]) -> None:
    assert split_words(text, language) == words


def test_an_index_stems_its_queries_as_its_texts() -> None:
    texts = ["Die Häuser stehen am Fluss.", "Der Garten liegt am Hang."]
    index = make_lexical([build_run(texts, "german")], language="german")
    assert score_lexical(index, "ein Haus").tolist()[1] == 0
    assert score_lexical(index, "ein Haus")[0] > 0
    assert not score_lexical(index, "der die das am").any(), "stop words alone find nothing"
    assert not score_lexical(build_lexical(texts), "ein Haus").any(), "as English the two are different words"


@pytest.mark.parametrize("language", STOP_WORDS)
def test_each_list_of_stop_words_is_of_a_language_that_is_stemmed(language: str) -> None:
    check_language(language)
    for word in STOP_WORDS[language]:
        assert split_words(f"{word} pumpx", language) == split_words("pumpx", language)
