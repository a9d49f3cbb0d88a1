"""scripts/bench_documents.py: what counts as found, as a whole row, and as a value beside its name."""

from collections import Counter
from pathlib import Path

import pytest

from scripts.bench_documents import (
    OURS,
    Reading,
    agree,
    count_named_values,
    count_whole_rows,
    count_words,
    list_refusals,
    read_by_loam,
    score_kind,
)

TABLE = [["Part", "Price"], ["Seal", "£4.50"], ["Rope", ""]]
BESIDE = "Part: Seal | Price: £4.50\nPart: Rope"
MARKDOWN = "| Part | Price |\n| --- | --- |\n| Seal | £4.50 |\n| Rope | |"
BROKEN = "Part\nPrice\nSeal\n£4.50\nRope"


def test_words_are_agreed_on_by_two() -> None:
    texts = ("a a a B", "a a b c", "a d")
    assert agree(map(count_words, texts)) == Counter({"a": 2, "b": 1})


def test_addresses_are_no_words() -> None:
    linked = 'See [a duck](https://example.org/wiki/Duck_(bird) "Duck") at https://example.org/a_b or www.example.org'
    assert count_words(linked) == count_words("See a duck Duck at or")


@pytest.mark.parametrize(
    ("text", "rows", "values"), [(BESIDE, (2, 2), (3, 3)), (MARKDOWN, (2, 2), (0, 3)), (BROKEN, (0, 2), (0, 3))]
)
def test_rows_and_names_are_counted(text: str, rows: tuple[int, int], values: tuple[int, int]) -> None:
    assert count_whole_rows(text, TABLE) == rows
    assert count_named_values(text, TABLE) == values


def test_a_library_is_scored_on_what_it_tried() -> None:
    one, two = Path("one"), Path("two")
    readings = {
        one: {OURS: Reading("a b c x", 1.0), "other": Reading("a b c d", 3.0), "third": Reading("d", 1.0)},
        two: {OURS: Reading(None, 2.0), "other": Reading("e", 1.0)},
    }
    scores = score_kind(readings, {one: [TABLE], two: []})
    assert list(scores) == [OURS, "other", "third"]
    ours = scores[OURS]
    assert (ours.files, ours.read, ours.median_s) == (2, 1, 1.5)
    assert ours.found == 3 / 4
    assert ours.alone == 1 / 4
    assert (ours.rows, ours.named) == (0, 0)
    assert scores["third"].found == 1 / 4


def test_what_was_not_read_is_listed_with_its_reason() -> None:
    readings = {
        Path("x/one.pdf"): {
            OURS: Reading("a", 1.0),
            "other": Reading(None, 1.0, "no model"),
            "third": Reading(None, 1.0),
        }
    }
    assert list_refusals(readings) == [
        {"library": "other", "file": "one.pdf", "reason": "no model"},
        {"library": "third", "file": "one.pdf", "reason": "no text"},
    ]


def test_our_headings_count_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Title\n\nWords.")
    assert count_words(read_by_loam(path, 1).text or "") == Counter(["title", "words"])
    path.write_text("")
    assert read_by_loam(path, 1).text is None
