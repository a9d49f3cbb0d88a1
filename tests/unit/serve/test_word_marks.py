"""Citation marks in words: which go, which stay, and that the way a text is cut into pieces changes nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.sentences import AnswerSplitter
from serve.word_marks import WordMarkRemover, drop_word_marks
from tests.fakes.pieces import cut

PASSAGES = ["Returns take 14 days.", "The form has a field [Source 2] for the shop.", "Pumps are sent in March."]
FRAGMENTS = [
    "[Source 1]", "(source 3)", "[[Doc 1]]", "[Sources 1 and 3]", "[Source 9]", "【1†source】", "Returns take 14 days",
    "As in", "says so", "[", "(", "]", ")", "【", " ", "  ", ".", ":", "\n", "Source", "sou", "1", ",", "and", "`",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def remove(pieces: list[str], passages: list[str] = PASSAGES) -> str:
    remover = WordMarkRemover(passages)
    return "".join([*map(remover.feed, pieces), remover.finish()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It takes 14 days [Source 1].", "It takes 14 days."),
        ("It takes 14 days (source 1). So it is.", "It takes 14 days. So it is."),
        ("It takes 14 days. [Source 1] Pumps are sent later. [Source: 3]", "It takes 14 days. Pumps are sent later."),
        ("14 days [Sources 1, 3], later (Document 1 and Document 3)", "14 days, later"),
        ("14 days[[Doc 1]] or more 【Source 3】!", "14 days or more!"),
        ("14 days [PASSAGE #1] and no more", "14 days and no more"),
    ],
)
def test_a_mark_that_names_a_passage_goes(text: str, expected: str) -> None:
    assert remove([text]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "No passage has this number [Source 4], nor this (Sources 1, 4), nor [Source 0].",
        "Fill in the field [Source 2] for the shop.",
        "According to [Source 1], it takes 14 days, and as (Source 3) says, later.",
        "[Source 1] says so. Then [Source 3] and [Source 1]: both do, as in [Source 1] and (source 3).",
        "It takes 14 days [Source 1](https://acme.example/returns).",
        "[Source code 1], (sourced 1), [Source 100], [Source], (Source one), [Resource 1], Source 1",
        "An open [Source 1",
        "An open [Source 1, ",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert remove([text]) == text


def test_without_passages_nothing_goes() -> None:
    assert remove(["14 days [Source 1]."], []) == "14 days [Source 1]."


def test_text_that_cannot_become_a_mark_flows() -> None:
    remover = WordMarkRemover(PASSAGES)
    assert remover.feed("It takes (some") == "It takes (some"
    assert remover.feed(" [Sour") == ""
    assert remover.feed("ly 1]") == " [Sourly 1]"


@given(texts, st.lists(st.integers(0, 6), max_size=30))
def test_marks_go_alike_however_the_text_is_cut(text: str, sizes: list[int]) -> None:
    assert remove(cut(text, sizes)) == remove([text])
    assert join_answer(cut(text, sizes)) == join_answer([text])


@given(texts)
def test_only_marks_go(text: str) -> None:
    kept = re.sub(r"\s", "", remove([text]))
    marks = r"\[\[Doc1\]\]|\[Source1\]|\(source3\)|\[Sources1and3\]|\[source1\]"
    assert re.sub(marks, "", kept) == re.sub(marks, "", re.sub(r"\s", "", text))


@pytest.mark.timeout(30)  # a pattern that goes back over them takes hours
def test_long_runs_cost_no_more_than_other_text() -> None:
    for text in (
        " " * 100_000,
        "(" * 100_000,
        "[source 1 " * 10_000,
        "[source 1] " * 10_000,
        "[Source 1]" + " " * 100_000,
    ):
        assert len(remove([text, "b"])) <= len(text) + 1


def join_answer(pieces: list[str]) -> str:
    splitter = AnswerSplitter(PASSAGES)
    given_out = [piece for part in pieces for piece in splitter.feed(part)] + splitter.finish()
    return "".join(piece.text for piece in given_out)


def test_what_is_checked_is_the_sentence_without_its_marks() -> None:
    passages = [passage.casefold() for passage in PASSAGES]
    assert drop_word_marks("As [Source 1] says, it takes 14 days (Source 4).", passages) == (
        "As says, it takes 14 days (Source 4)."
    )
    assert drop_word_marks("The field [Source 2] is for the shop.", passages) == "The field [Source 2] is for the shop."
