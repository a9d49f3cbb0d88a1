"""Citing: what supports a sentence, and what never carries a mark."""

import pytest

from serve.citing import (
    CitedText,
    Source,
    choose_source,
    find_candidates,
    find_quoted,
    is_citable,
    normalize_number,
    read_names,
    read_terms,
)

RETURNS = Source(
    1, "returns.md", "Returns > Time", "c1",
    "A customer can return a product within 45 days of delivery. Opened products carry a restocking fee of 12%.",
)  # fmt: skip
WARRANTY = Source(
    2, "warranty.docx", None, "c2",
    "The Brook 40 pump has a warranty of 26 months. Damage by frost is not covered.",
)  # fmt: skip
SOURCES = [RETURNS, WARRANTY]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("1. You can return a product within 45 days of delivery.", [0]),
        ("The restocking fee for opened products is 12 %.", [0]),
        ("The warranty of the Brook 40 pump is 26 months.", [1]),
        ("- Damage by frost is not covered.", [1]),
        ("Returned products are accepted within 45 days after delivery.", [0]),
        ("You can return a product within 30 days of delivery.", []),
        ("The Brook 40 pump has a warranty of 24 months.", []),
        ("The Reed sensor has a warranty of 26 months.", []),
        ("The Brook 40 pump in Bergen has a warranty of 26 months.", []),
        ("The warranty for the Torrent pump is 26 months.", []),
        ("Our office in Leeds opens early on Mondays.", []),
    ],
)
def test_a_sentence_is_cited_to_what_holds_its_words_and_numbers(sentence: str, expected: list[int]) -> None:
    assert list(find_candidates(sentence, SOURCES)) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "Acme Desk answer:",
        "Reply here if a step does not work.",
        "Ref: ACME-RET-2",
        "**Ref: ACME-RET-2**",
        "The documents do not say how many days a customer can return a product.",
        "I could not find the warranty of the Brook 40 pump in the documents.",
        "The return of a product is not mentioned in the documents.",
        "There is no information on the warranty of a pump.",
        "Do you want to return a product within 45 days of delivery?",
        "Yes.",
        "1.",
        "",
        "## Return of a product within 45 days",
    ],
)
def test_what_says_nothing_is_never_cited(sentence: str) -> None:
    assert find_candidates(sentence, SOURCES) == {}


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("The Brook 40 pump is in Zürich.", {"brook", "zürich"}),
        ("Open it. Keep the invoice: Write to Acme.", {"acm"}),
        ("Philippa Ondrasek leads it", {"ondrasek"}),
        ("the Élan, the NPSH and iPad", {"élan", "npsh"}),
        ('ask "Help" (Often)', set()),
    ],
)
def test_names_are_capitalized_words_within_a_sentence(sentence: str, names: set[str]) -> None:
    assert read_names(sentence) == names


def test_a_file_name_tells_what_a_passage_is_about() -> None:
    source = Source(1, "torrent_manual.pdf", None, "u", "The pump has a warranty of 26 months.")
    assert find_candidates("The Torrent pump has a warranty of 26 months.", [source])
    assert find_candidates("The Torrent 90 pump has a warranty of 26 months.", [source]) == {}


def test_a_heading_counts_as_said() -> None:
    source = Source(1, "a.md", "Brook 40 > Warranty", "u", "The pump has a warranty of 26 months.")
    assert find_candidates("The Brook 40 has a warranty of 26 months.", [source]) == {0: 1.0}


def test_a_passage_that_is_far_in_meaning_does_not_support() -> None:
    candidates = find_candidates("You can return a product within 45 days.", SOURCES)
    assert choose_source(candidates, [0.9, 0.9], SOURCES) is RETURNS
    assert choose_source(candidates, [0.1, 0.9], SOURCES) is None


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("2. Damage by frost is not covered.", WARRANTY),
        ("opened products  carry a restocking fee of 12%", RETURNS),
        ("Opened products carry a restocking fee of 1", None),
        ("Damage by frost is covered.", None),
        ("covered.", None),
        ("+ Damage by frost is not covered.", WARRANTY),
    ],
)
def test_a_sentence_of_the_passage_itself_needs_no_further_proof(sentence: str, expected: Source | None) -> None:
    assert find_quoted(sentence, SOURCES) is expected


@pytest.mark.parametrize(
    "held", ["2.5 bar is too much", "2,5 bar is too much", "-5 bar is too much", "−5 bar is too much"]
)
def test_the_end_of_another_number_is_no_quotation(held: str) -> None:
    assert find_quoted("5 bar is too much.", [Source(1, "a.md", None, "u", f"For the pump {held}.")]) is None
    assert find_quoted("5 bar is too much.", [Source(1, "a.md", None, "u", "For the pump 5 bar is too much.")])


def test_a_sentence_is_quoted_from_a_text_without_blanks() -> None:
    source = Source(1, "z.md", None, "u", "水泵的质保期为26个月。请联系客户服务部门。")
    assert find_quoted("水泵的质保期为26个月。", [source]) is source
    assert find_quoted("水泵的质保期为6个月。", [source]) is None


@pytest.mark.timeout(30)  # a pattern that goes back over them takes minutes
def test_a_long_run_of_zeros_costs_no_more_than_other_digits() -> None:
    assert normalize_number("0." + "0" * 1_000_000 + "1") == "0." + "0" * 1_000_000 + "1"


def test_the_better_of_two_is_taken_and_the_first_of_equals() -> None:
    twin = Source(3, "copy.md", None, "u", RETURNS.text)
    sources = [RETURNS, twin]
    candidates = find_candidates("A customer can return a product within 45 days of delivery.", sources)
    assert choose_source(candidates, [0.5, 0.8], sources) is twin
    assert choose_source(candidates, [0.8, 0.8], sources) is RETURNS


@pytest.mark.parametrize(
    ("text", "expected"), [("1,200.50", "1200.5"), ("12.0", "12"), ("45", "45"), ("1,5", "1,5"), ("12:30", "12:30")]
)
def test_numbers_are_compared_by_value(text: str, expected: str) -> None:
    assert normalize_number(text) == expected


def test_small_numbers_in_words_are_numbers() -> None:
    assert read_terms("seven days") == read_terms("7 days")


def test_a_short_fact_with_a_number_can_be_cited() -> None:
    assert is_citable("45 days.")
    assert list(find_candidates("45 days.", SOURCES)) == [0]


def test_a_citation_covers_its_mark_and_nothing_else() -> None:
    cited = CitedText()
    text = cited.write("Grüße 🙂. 45 days.")
    mark, first = cited.cite(RETURNS)
    text += mark + cited.write("\nMore.")
    mark, second = cited.cite(WARRANTY)
    text += mark
    assert text == "Grüße 🙂. 45 days. [1]\nMore. [2]"
    assert [text[one.start : one.end] for one in (first, second)] == ["[1]", "[2]"]
    assert [one.source for one in (first, second)] == [RETURNS, WARRANTY]
    assert RETURNS.title == "returns.md | Returns > Time"
