"""Loads EPUB books: the chapters in reading order, each read as the HTML page that it is.

Owns: finding the chapters by the book's own list (its spine). The archive is opened with the limits of Office files.
Does not know HTML.

Source: EPUB 3.3, https://www.w3.org/TR/epub-33/ (the same elements as EPUB 2).
"""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote

from lxml import etree

from core.errors import InvalidFile
from retrieval.loaders.html import load_html
from retrieval.loaders.office_package import OfficePackage, find_child, local_name
from retrieval.loaders.outline import Outline, join_line

CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGE_TYPES = frozenset({"application/xhtml+xml", "text/html"})
_MAX_CHAPTERS = 5_000


def load_epub(data: bytes, outline: Outline) -> None:
    """Add a book; its title is the outermost heading.

    Raises:
        InvalidFile: The file is damaged, locked by rights management, or says nothing of its chapters.
    """
    package = OfficePackage(data)
    main = _find_book(package)
    book = package.read_xml(main)
    title = _state_metadata(book, outline)
    locked = set(_find_locked(package))
    chapters = list(_find_chapters(book, posixpath.dirname(main)))
    if not any(chapter in package for chapter in chapters):
        raise InvalidFile("The book is damaged: it does not say which parts are its chapters.")
    for chapter in chapters[:_MAX_CHAPTERS]:
        if chapter in locked:
            raise InvalidFile("The book is locked by rights management. Upload a copy without it.")
        if chapter in package:
            load_html(package.read_part(chapter), outline, above=title)


def _find_book(package: OfficePackage) -> str:
    """Return the path of the part that describes the book."""
    for element in package.read_xml(CONTAINER).iter("{*}rootfile"):
        path = str(element.get("full-path", ""))
        if path in package:
            return path
    raise InvalidFile("The book is damaged: it does not say which part describes it.")


def _state_metadata(book: etree._Element, outline: Outline) -> str:
    """Tell the book's title, authors and language to the outline; return the title."""
    metadata = find_child(book, "metadata")
    values: dict[str, list[str]] = {}
    for element in metadata.iter() if metadata is not None else ():
        if local_name(element) in {"title", "creator", "language"}:
            values.setdefault(local_name(element), []).append(join_line(element.text or ""))
    title = next(iter(values.get("title", [])), "")
    stated = {
        "title": title,
        "author": values.get("creator", []),
        "language": next(iter(values.get("language", [])), ""),
    }
    outline.state_attributes({key: value for key, value in stated.items() if value})
    outline.add_heading(0, title)
    return title


def _find_chapters(book: etree._Element, folder: str) -> Iterator[str]:
    """Yield the paths of the pages in reading order, the table of contents left out."""
    items = {
        item.get("id", ""): item
        for item in book.iter("{*}item")
        if item.get("media-type") in _PAGE_TYPES and "nav" not in item.get("properties", "").split()
    }
    for entry in book.iter("{*}itemref"):
        item = items.get(entry.get("idref", ""))
        if item is not None:
            yield _resolve(folder, item.get("href", ""))


def _resolve(folder: str, address: str) -> str:
    return posixpath.normpath(posixpath.join("/", folder, unquote(address.partition("#")[0]))).lstrip("/")


def _find_locked(package: OfficePackage) -> Iterator[str]:
    """Yield the parts that are encrypted; often those are fonts alone."""
    if _ENCRYPTION in package:
        for element in package.read_xml(_ENCRYPTION).iter("{*}CipherReference"):
            yield _resolve("", element.get("URI", ""))
