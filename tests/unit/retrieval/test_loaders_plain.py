"""Plain text, source code, CSV and JSON: encodings and layouts."""

import json

import pytest

from core.errors import UnsupportedFile
from retrieval.document import Document
from retrieval.loaders.outline import Outline
from retrieval.loaders.plain import decode_text, load_csv, load_json, load_json_lines, load_text


def read(load: object, text: str) -> Document:
    outline = Outline()
    load(text, outline)  # type: ignore[operator]
    return outline.build()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_any_encoding_is_read(encoding: str) -> None:
    text = "Die Größe der Tür beträgt zwei Meter, und sie schließt schön."
    assert decode_text(text.encode(encoding)) == text


def test_cyrillic_is_not_taken_for_western_text() -> None:
    text = "Насос включается сам, когда уровень воды поднимается выше поплавка. Проверяйте его раз в месяц."
    assert decode_text(text.encode("cp1251")) == text


def test_binary_is_refused() -> None:
    with pytest.raises(UnsupportedFile, match="binary"):
        decode_text(bytes(range(256)) * 8)


def test_underlined_lines_are_headings() -> None:
    document = read(load_text, "THE VALVE\n=========\n\nFitting\n-------\nStep one.\n\n-----\nNot a heading\n")
    assert [section.heading for section in document.sections] == ["THE VALVE > Fitting"]
    assert document.text == "Step one.\n\n-----\nNot a heading"


def test_the_last_line_of_a_paragraph_is_no_heading() -> None:
    assert read(load_text, "Some text\nends here\n---------\n").text == "Some text\nends here\n---------"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_rows_carry_the_names_of_their_columns(separator: str) -> None:
    text = "\n".join(
        separator.join(row) for row in (["Part", "Price"], ["Reed", "57"], ["Lock", "98"], ["Weir", "246"])
    )
    assert read(load_csv, text).text == "Part: Reed | Price: 57\nPart: Lock | Price: 98\nPart: Weir | Price: 246"


def test_a_quoted_cell_may_hold_separators_and_line_breaks() -> None:
    assert read(load_csv, 'Part,Note\nReed,"red, or\nblue"\n').text == "Part: Reed | Note: red, or blue"
    odd = "Part,Note\r\nReed,red\u2028or blue\x0b\r\nLock,plain\r\n"  # ends of lines to Python, not to CSV
    assert read(load_csv, odd).text == "Part: Reed | Note: red or blue\nPart: Lock | Note: plain"


def test_only_what_separates_cells_is_taken_for_a_separator_or_a_quote() -> None:
    songs = "Id,Title\n1,'90s music\n2,the boys',\n3,\"'tis, too\"\n"
    assert read(load_csv, songs).text == "Id: 1 | Title: '90s music\nId: 2 | Title: the boys'\nId: 3 | Title: 'tis, too"
    prices = "Part;Price;Note\nReed;1,5;red\nLock;2,75;blue\n"
    assert read(load_csv, prices).text == "Part: Reed | Price: 1,5 | Note: red\nPart: Lock | Price: 2,75 | Note: blue"
    spaced = 'Part, Note\nReed, "red, or ""blue"""\n'
    assert read(load_csv, spaced).text == 'Part: Reed | Note: red, or "blue"'
    inches = "Part,Size\n" + '"Lock\n' * 20_000  # quotes that are never closed cost no time
    assert read(load_csv, inches).text.startswith("Part")


def test_records_are_paragraphs_of_named_lines() -> None:
    records = [
        {"name": "Reed", "price": 57, "site": {"city": "Bonn"}, "tags": ["a", "b"], "gone": None},
        {"name": "Lock"},
    ]
    wanted = "name: Reed\nprice: 57\nsite city: Bonn\ntags: a\ntags: b\n\nname: Lock"
    assert read(load_json_lines, "\n".join(map(json.dumps, records))).text == wanted
    assert read(load_json, json.dumps(records)).text == wanted
