"""EPUB: the chapters in the book's own order, under its title, within the limits of archives."""

from pathlib import Path

import pytest

from core.errors import InvalidFile
from retrieval.document import Document
from retrieval.loaders import load_document, office_package
from retrieval.loaders.epub import CONTAINER, load_epub
from retrieval.loaders.outline import Outline
from tests.fakes.hostile_office import pack

ROOT = '<rootfiles><rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>'
TYPE = 'media-type="application/xhtml+xml"'
ITEMS = (
    f'<item id="two" href="two.xhtml" {TYPE}/><item id="one" href="text/one%20.xhtml#top" {TYPE}/>'
    f'<item id="nav" href="nav.xhtml" {TYPE} properties="nav"/><item id="picture" href="a.png" media-type="image/png"/>'
)
ORDER = "".join(f'<itemref idref="{name}"/>' for name in ("nav", "one", "two", "picture", "missing"))


def pack_book(spine: str = ORDER, items: str = ITEMS, metadata: str = "", **parts: str) -> bytes:
    title = "<dc:title>The Book</dc:title><dc:creator>A. Writer</dc:creator><dc:language>en</dc:language>"
    book = f'<package xmlns="x" xmlns:dc="y"><metadata>{title}{metadata}</metadata><manifest>{items}</manifest>'
    return pack(
        {
            "mimetype": "application/epub+zip",
            CONTAINER: f'<container xmlns="c">{ROOT}</container>',
            "OPS/book.opf": f"{book}<spine>{spine}</spine></package>",
            "OPS/text/one .xhtml": write_page("<h1>First</h1><p>Words of one.</p>"),
            "OPS/two.xhtml": write_page("<h2>Second</h2><table><tr><th>A<th>B<tr><td>1<td>2</table>"),
            "OPS/nav.xhtml": write_page("<nav><a href='two.xhtml'>Second</a></nav><p>Contents.</p>"),
            **{name.replace("__", "/"): content for name, content in parts.items()},
        }
    )


def write_page(body: str) -> str:
    return (
        '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/xhtml11.dtd">'
        f"<html><head><title>Chapter of The Book</title></head><body>{body}</body></html>"
    )


def read(data: bytes) -> Document:
    outline = Outline()
    load_epub(data, outline)
    return outline.build()


def test_chapters_come_in_the_books_order_under_its_title() -> None:
    document = read(pack_book())
    assert [(section.heading, document.text[section.start : section.end]) for section in document.sections] == [
        ("The Book > First", "Words of one."),
        ("The Book > Second", "A: 1 | B: 2"),
    ]
    assert document.attributes == {"title": "The Book", "author": ["A. Writer"], "language": "en"}


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "book.zip"
    path.write_bytes(pack_book())
    assert load_document(path).sections


def test_a_real_book_is_read(shared_data: Path) -> None:
    document = load_document(shared_data / "documents" / "other" / "winter-sports.epub")
    headings = [section.heading or "" for section in document.sections]
    assert headings[0].startswith("Winter Sports in Switzerland > ")
    assert any(heading.endswith("CHAPTER II RINKS AND SKATERS") for heading in headings)
    assert "There is an amazingly silly proverb" in document.text
    assert len(document.text) > 300_000


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (pack({CONTAINER: "<container/>"}), "which part describes it"),
        (pack({CONTAINER: "not XML"}), "not XML"),
        (pack({CONTAINER: f'<!DOCTYPE c [<!ENTITY a "b">]><container>{ROOT}</container>'}), "DTD"),
        (pack_book(spine=""), "which parts are its chapters"),
        (
            pack_book(items="<item id='one' href='../../etc/passwd' media-type='text/html'/>"),
            "which parts are its chap",
        ),
        (
            pack_book(
                **{"META-INF__encryption.xml": '<e><CipherReference URI="OPS/two.xhtml"/></e>'},
            ),
            "rights management",
        ),
    ],
)
def test_what_is_no_book_or_locked_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(InvalidFile, match=wanted):
        read(data)


def test_encrypted_fonts_lock_nothing() -> None:
    fonts = '<e><CipherReference URI="OPS/font.otf"/></e>'
    assert "Words of one." in read(pack_book(**{"META-INF__encryption.xml": fonts})).text


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office_package, "MAX_XML_BYTES", 10_000)
    with pytest.raises(InvalidFile, match="unpacks to"):
        read(pack_book(**{"OPS__two.xhtml": write_page("x" * 20_000)}))
    items = ITEMS.replace("two.xhtml", "two.bin")
    with pytest.raises(InvalidFile, match="unpacks to more"):
        read(pack_book(items=items, **{"OPS__two.bin": write_page("x" * 20_000)}))
