"""A report needs nothing else, escapes what is not ours, leads from numbers to rows, and is the same byte for byte."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.report import Link, Section, draw_bars, make_anchor, render_csv, render_html, show, write_report

HOSTILE = '<script>alert("1")</script> & "quotes"'


class Reader(HTMLParser):
    """Collects what a page holds."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and what it names."""
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in {"href", "xlink:href"}:
                self.links.append(str(value))
            elif name in {"src", "data", "action"}:
                self.sources.append(str(value))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


def sections() -> list[Section]:
    return [
        Section("Quality", "One.\n\nTwo.", ("arm", "success"), [("rag", Link(0.75, make_anchor("rag", "q 1")))],
                figure=draw_bars(["base", "rag"], [0.1, 0.75], [0.0, 0.6], [0.2, 0.9], "success")),
        Section("Answers", "", ("arm", "text"), [("rag", HOSTILE)], [make_anchor("rag", "q 1")], is_folded=True),
        Section("Once more", figure=draw_bars(["a"], [1.0], [0.9], [1.0], "x")),
    ]  # fmt: skip


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_numbers_lead_to_rows_that_are_there() -> None:
    reader = read_page(render_html("T", sections()))
    inner = [link[1:] for link in reader.links if link.startswith("#")]
    assert "rag-q-1" in inner
    assert set(inner) <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids)), "two figures or rows share an id"


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render_html("T", sections())
    reader = read_page(page)
    assert reader.sources == []
    assert [link for link in reader.links if not link.startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", page)


def test_what_is_not_ours_is_escaped() -> None:
    reader = read_page(render_html(HOSTILE, sections()))
    assert reader.tags.count("script") == 1
    assert HOSTILE in reader.texts


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, "T", sections(), {"x": [1, 0.5]}, (("arm", "score"), [("rag", 1.0)]))
    for file in ("report.html", "report.json", "scores.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == {"x": [1, 0.5]}
    assert "svg" in read_page((tmp_path / "a" / "report.html").read_text()).tags


def test_a_csv_is_read_back_and_runs_no_formula() -> None:
    text = render_csv(("arm", "text"), [("rag", 'a "b", c\nd'), ("base", "=1+1"), ("base", -1.5)])
    assert list(csv.reader(io.StringIO(text))) == [
        ["arm", "text"],
        ["rag", 'a "b", c\nd'],
        ["base", "'=1+1"],
        ["base", "-1.5"],
    ]


def test_a_table_with_a_row_too_many_anchors_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        render_html("T", [Section("S", columns=("a",), rows=[("x",)], anchors=["one", "two"])])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), ("text", "text"), (12345, "12,345"), (0.38806, "0.388"), (-0.5, "-0.500"), (96.6164, "96.62"),
     (507.313, "507.3"), (31883.4, "31,883.4")],
)  # fmt: skip
def test_a_number_has_as_many_digits_as_say_something(value: str | float | None, shown: str) -> None:
    assert show(value) == shown


def test_a_table_without_names_has_no_empty_heading() -> None:
    page = render_html("T", [Section("A", "", ("", ""), [("because", "x")]), Section("B", "", ("n", ""), [("1", "2")])])
    assert page.count("<thead>") == 1
    assert page.count("<tbody>") == 2
