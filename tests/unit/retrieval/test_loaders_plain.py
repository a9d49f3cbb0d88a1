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


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Насос включается сам, когда уровень воды поднимается выше поплавка."),
        ("koi8-r", "Насос включается сам, когда уровень воды поднимается выше поплавка."),
        ("cp1250", "A szivattyú magától bekapcsol, ha a víz szintje az úszó fölé emelkedik."),
        ("iso8859-2", "Čerpadlo se zapne samo, když hladina vody vystoupí nad plovák."),
        ("cp1252", "Pumppu käynnistyy itsestään, kun vedenpinta nousee uimurin yläpuolelle."),
        ("cp1254", "Su seviyesi şamandıranın üstüne çıkınca pompa kendiliğinden çalışır."),
        ("cp1255", "המשאבה נדלקת מעצמה כאשר מפלס המים עולה מעל המצוף."),
        ("cp1257", "Siurblys įsijungia pats, kai vandens lygis pakyla virš plūdės."),
    ],
)
def test_the_encoding_of_a_short_text_is_guessed_by_its_language(encoding: str, text: str) -> None:
    assert decode_text(text.encode(encoding)) == text


def test_a_longer_text_is_read_in_the_encoding_of_dos_too() -> None:
    words = "früh grün kühl für über schön böse möglich größer Maß süß Bäume Häuser spät Tür Öl Äpfel Übung weiß hören"
    assert decode_text(words.encode("cp850")) == words


@pytest.mark.parametrize(
    "text",
    [
        "Größe: 5 €",
        "naïve résumé, déjà vu",
        "Teil;Preis\n" + "Ventil;5,20 €\nAnschlußstück, groß;7,10 €\n" * 30,
        "int main() { // größe\n    return 0;\n}\n" * 30,
        "Der Preis: 5 € – “gut” groß…",
    ],
)
def test_few_different_signs_are_taken_for_the_commonest_encoding(text: str) -> None:
    assert decode_text(text.encode("cp1252")) == text


def test_a_stray_byte_spoils_one_sign_and_no_more() -> None:
    text = "Die Größe der Tür beträgt zwei Meter. " * 20
    data = text.encode()
    assert decode_text(data[:300] + b"\xff" + data[300:]).replace("\ufffd", "") == text
    assert decode_text(data + "ß".encode()[:1]) == text + "\ufffd"


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
