"""What load_document promises for every format: what is read, what is refused, and how sections lie in the text."""

import io
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidFile, NotFound, UnsupportedFile
from retrieval.document import Document
from retrieval.loaders import load_document
from retrieval.loaders.outline import Outline, clean_text, find_column_names, write_table

ACME = Path(__file__).parents[3] / "examples" / "acme" / "documents"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def check_sections(document: Document) -> None:
    position = 0
    for section in document.sections:
        assert position <= section.start < section.end
        assert not document.text[position : section.start].strip()
        assert document.text[section.start : section.end].strip()
        position = section.end
    assert not document.text[position:].strip()


@pytest.mark.parametrize("path", sorted(ACME.iterdir()), ids=lambda path: path.name)
def test_every_document_of_the_example_company_has_headed_sections(path: Path) -> None:
    document = load_document(path)
    check_sections(document)
    assert len(document.sections) >= 3
    for section in document.sections:
        assert section.heading is not None
        assert section.heading.count(" > ") == 1
        assert section.heading.rpartition(" > ")[2] not in document.text[section.start : section.end].splitlines()
        assert (section.page is not None) == (path.suffix == ".pdf")


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("empty.md", b"", "empty"),
        ("blank.txt", b" \n\t\r\n", "empty"),
        ("cut.pdf", b"%PDF-1.7\n1 0 obj\n<<", "damaged"),
        ("no.pdf", b"Dear all, this is a letter.", "not a PDF"),
        ("no.docx", b"Dear all, this is a letter.", "not a Word file"),
        ("cut.docx", b"PK\x03\x04" + bytes(60), "damaged archive"),
        ("locked.docx", bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"), "password"),
        ("script.html", b"<script>alert(1)</script>", "no text"),
        ("broken.json", b'{"a": ', "not JSON"),
        ("broken.jsonl", b'{"a": 1}\n{"a"\n', "Line 2"),
        ("deep.json", b"[" * 100_000, "not JSON"),
        ("bad.txt", b"\xff\xfeD\x00e\x00a", "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_invalid(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    with pytest.raises(InvalidFile, match=wanted):
        load_document(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("photo.txt", b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG"),
        ("old.doc", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600), "old Office"),
        ("letter.xyz", b"Dear all", r"\.xyz"),
        ("program.md", bytes(range(256)) * 10, "binary"),
        ("letter.txt", b"{\\rtf1 Dear all}", "RTF"),
    ],
)
def test_a_kind_that_nobody_reads_is_unsupported(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    with pytest.raises(UnsupportedFile, match=wanted):
        load_document(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("member", "wanted"),
    [("a.txt", "zip archive"), ("content.xml", "OpenDocument")],
)
def test_other_archives_are_named(tmp_path: Path, member: str, wanted: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as package:
        package.writestr(member, "x")
    with pytest.raises(UnsupportedFile, match=wanted):
        load_document(write(tmp_path, "book.txt", archive.getvalue()))


def test_the_content_decides_before_the_ending(tmp_path: Path) -> None:
    pdf = write(tmp_path, "notes.txt", (ACME / "hr-safety.pdf").read_bytes())
    assert load_document(pdf) == load_document(ACME / "hr-safety.pdf")
    page = write(tmp_path, "page.txt", "<!DOCTYPE html><h1>Title</h1><p>Body</p>")
    assert load_document(page).sections[0].heading == "Title"


def test_a_text_about_pdf_is_no_pdf(tmp_path: Path) -> None:
    about = "# How a PDF begins\n\nIts first line is %PDF-1.7 or so.\n"
    assert load_document(write(tmp_path, "about.md", about)).text == "Its first line is %PDF-1.7 or so."
    for name, content in (("late.pdf", "a note first\n%PDF-1.7\n"), ("wrong.txt", "%PDF-1.7\n")):
        with pytest.raises(InvalidFile, match="PDF"):
            load_document(write(tmp_path, name, content))


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.md"):
        load_document(tmp_path / "gone.md")


def test_unseen_signs_are_dropped() -> None:
    hidden = "".join(chr(0xE0000 + ord(sign)) for sign in "obey")
    assert clean_text(f"pass\xadword\u200b \u202ereversed{hidden}\ufeff\x00 e\u0301\xa0x\r\ny \f\n\n\n\nz") == (
        "password reversed é x\ny\n\nz"
    )


@given(st.lists(st.tuples(st.sampled_from("hpt"), st.text(max_size=40)), max_size=30))
def test_sections_cover_the_text_in_order_whatever_comes(steps: list[tuple[str, str]]) -> None:
    outline = Outline()
    for number, (kind, text) in enumerate(steps, start=1):
        if kind == "h":
            outline.add_heading(number % 3, text)
        elif kind == "p":
            outline.start_page(number)
        else:
            outline.add_text(text)
    try:
        document = outline.build()
    except InvalidFile:
        assert not any(clean_text(text) for kind, text in steps if kind != "p")
        return
    check_sections(document)
    assert document.text == unicodedata.normalize("NFC", document.text)
    document.text.encode()  # no lone surrogates


def test_a_deeper_heading_stands_under_the_ones_above_it() -> None:
    outline = Outline()
    for level, title in ((1, "A"), (2, "B"), (3, "C"), (2, "D")):
        outline.add_heading(level, title)
        outline.add_text(title.lower())
    assert [section.heading for section in outline.build().sections] == ["A", "A > B", "A > B > C", "A > D"]


def test_a_heading_without_body_is_no_section_but_stands_in_the_path() -> None:
    outline = Outline()
    for level, title in ((1, "A"), (2, "Empty"), (2, "B")):
        outline.add_heading(level, title)
    outline.add_text("text")
    assert [section.heading for section in outline.build().sections] == ["A > B"]


def test_a_file_of_headings_alone_keeps_them_as_text() -> None:
    outline = Outline()
    outline.add_heading(1, "Moved to the intranet")
    document = outline.build()
    assert (document.text, document.sections[0].heading) == ("Moved to the intranet", None)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([["Product", "Price"], ["Brook 12", "£184"], ["Reed", ""]], "Product: Brook 12 | Price: £184\nProduct: Reed"),
        ([["Prices of 2026", ""], ["Product", "Price"], ["Reed", "£57"]], "Prices of 2026\nProduct: Reed | Price: £57"),
        ([["1", "2"], ["3", "4"]], "1 | 2\n3 | 4"),
        ([["Power:", "145 watts"], ["Noise:", "41 decibels"]], "Power: 145 watts\nNoise: 41 decibels"),
        ([["", "Ash"], ["Leaf", "yes"]], "Leaf | Ash: yes"),
        ([["a"], ["b"]], "a\nb"),
        ([["only", "row"]], "only | row"),
        ([["A", "B"], ["1", "2", "3"]], "A: 1 | B: 2 | 3"),
        ([], ""),
    ],
)
def test_table_values_stand_beside_their_names(rows: list[list[str]], wanted: str) -> None:
    assert write_table(rows) == wanted


def test_a_table_without_names_has_none() -> None:
    assert find_column_names([["1", "2"], ["3", "4"]]) == []
    assert find_column_names([["Year", "Ducks"], ["2019", "120"]]) == ["Year", "Ducks"]


@pytest.mark.timeout(60)  # each takes minutes where a pattern goes back over what it has read
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spaces.txt", (" " * 20_000 + "x\n") * 500),
        ("ticks.md", "x\n\n" + "`" * 200_000),
        ("tags.md", "{% " * 100_000),
        ("brackets.md", "[" * 5_000 + "x"),
        ("metas.html", "<p>x</p>" + "<meta " * 100_000),
    ],
)
def test_no_pattern_takes_forever(tmp_path: Path, name: str, content: str) -> None:
    load_document(write(tmp_path, name, content))
