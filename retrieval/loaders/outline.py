"""The one place where text, headings, pages and tables become a Document, whatever the file format.

Owns: cleaning of text, the heading path, the offsets of sections, the layout of table rows. Knows no file format.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import InvalidFile
from retrieval.document import Document, Section

MAX_HEADING_CHARS = 200
MAX_TEXT_CHARS = 20_000_000
"""About five million tokens, the most that OpenAI's file search takes of one file."""
_MAX_NAME_CHARS = 80  # of a table's column

# Signs that no reader sees: control characters, lone surrogates, soft hyphens, zero-width and direction marks, tag
# characters. They break words for the lexical index, and unseen text is a way to smuggle instructions to a model.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_BLANK_LINES = re.compile(r"\n{3,}")
_NUMBER = re.compile(r"[-+(]?[^\w\s]?\s?\d[\d.,:/\s]*[^\w\s]?\)?")


def clean_text(text: str) -> str:
    r"""Return text in NFC with "\n" line ends, plain spaces, no unseen signs, no outer or repeated empty lines."""
    text = _SPACES.sub(" ", _UNSEEN.sub("", _LINE_ENDS.sub("\n", text)))
    lines = (line.rstrip(" \t") for line in unicodedata.normalize("NFC", text).split("\n"))
    text = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")
    return text if text.strip() else ""


def join_line(text: str) -> str:
    """Return the text on one line, with single spaces."""
    is_clean = text.isascii() and text.isprintable()  # as most cells of large tables are
    return " ".join((text if is_clean else clean_text(text)).split())


class Outline:
    """Collects a file's headings and paragraphs in reading order and builds the Document from them."""

    def __init__(self) -> None:
        self._path: list[tuple[int, str]] = []
        self._page: int | None = None
        self._parts: list[str] = []
        self._length = 0
        self._sections: list[Section] = []
        self._is_open = False  # whether the last section still grows
        self._titles: list[str] = []
        self._attributes: dict[str, Any] = {}

    def state_attributes(self, values: Mapping[str, Any]) -> None:
        """Add what the document states of itself: plain values, or lists of those, by key."""
        self._attributes.update(values)

    def add_heading(self, level: int, title: str) -> None:
        """Open a section; a heading of the same or a deeper level ends with it.

        Args:
            level: Depth from the outside, any integer; a document's own title may be 0.
            title: The heading's text; nothing happens when it is blank.
        """
        title = join_line(title)[:MAX_HEADING_CHARS].rstrip()
        if not title:
            return
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, title))
        self._titles.append(title)
        self._is_open = False

    def start_page(self, number: int) -> None:
        """Open a section for page `number` (from 1) under the heading path that holds already."""
        self._page = number
        self._is_open = False

    def add_text(self, text: str) -> None:
        """Add one or more paragraphs to the section that is open; nothing happens when the text is blank.

        Raises:
            InvalidFile: It is more text than one document may hold.
        """
        text = clean_text(text)
        if not text:
            return
        if self._length + len(text) > MAX_TEXT_CHARS:
            raise InvalidFile(
                f"The file holds more than {MAX_TEXT_CHARS // 10**6} million characters of text. Split it."
            )
        if self._parts:
            self._parts.append("\n\n")
            self._length += 2
        start, self._length = self._length, self._length + len(text)
        self._parts.append(text)
        if self._is_open:
            start = self._sections.pop().start
        heading = " > ".join(title for _, title in self._path) or None
        self._sections.append(Section(start, self._length, self._page, heading))
        self._is_open = True

    def build(self) -> Document:
        """Return the document.

        Raises:
            InvalidFile: There is neither text nor a heading.
        """
        if not self._parts:
            titles, self._titles, self._path = self._titles, [], []
            self.add_text("\n\n".join(titles))  # headings alone are all that the file says
        if not self._parts:
            raise InvalidFile("The file holds no text.")
        return Document("".join(self._parts), tuple(self._sections), self._attributes)


def write_table(rows: Iterable[Sequence[str]]) -> str:
    """Write a table so that every value stands beside its column's name, one row a line.

    Rows before the one that names the columns are kept as they are: a caption, a note.

    Args:
        rows: Cell texts, row by row; rows may differ in length.

    Returns:
        Lines such as "Product: Brook 12 | Price: £184"; without column names, "Brook 12 | £184".
    """
    filled = _fill_rows(rows)
    above, names = _find_header(filled)
    lines = [_write_row(row, []) for row in filled[:above]]
    lines += [_write_row(row, names) for row in filled[above + bool(names) :]]
    return "\n".join(lines)


def find_column_names(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the cells of the row that names the columns; an empty list where none does."""
    return _find_header(_fill_rows(rows))[1]


def _fill_rows(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    cleaned = ([join_line(cell) for cell in row] for row in rows)
    return [row for row in cleaned if any(row)]


def _find_header(rows: list[list[str]]) -> tuple[int, list[str]]:
    """Return how many rows stand above the header, and its cells.

    The header is the first row after captions (all filled cells alike) and at most two notes (a cell too long for a
    name). It has several filled cells, at least half of all, and no number alone; a label such as "Power:" in front
    says that the names stand in the first column instead.
    """
    notes = 0
    for above, row in enumerate(rows[:-1]):
        filled = [cell for cell in row if cell]
        is_note = max(map(len, filled)) > _MAX_NAME_CHARS
        is_caption = len(set(filled)) == 1 and bool(row[0])
        if not is_caption and not (is_note and notes < 2):
            is_header = (
                not is_note
                and len(filled) * 2 >= len(row)
                and not row[0].endswith(":")
                and not any(_NUMBER.fullmatch(cell) for cell in filled)
            )
            return above, row if is_header else []
        notes += is_note
    return 0, []


def _write_row(row: Sequence[str], names: Sequence[str]) -> str:
    filled = [cell for cell in row if cell]
    if len(set(filled)) == 1 and len(row) > 1 and (len(filled) > 1 or not names):
        return filled[0]  # one cell across the table
    if len(filled) == 2 and filled[0].endswith(":") and not names:
        return " ".join(filled)
    named = [*names, *[""] * (len(row) - len(names))]
    return " | ".join(_name_cell(name, cell) for name, cell in zip(named, row, strict=False) if cell)


def _name_cell(name: str, cell: str) -> str:
    return f"{name.rstrip(':')}: {cell}" if name and name != cell else cell
