"""Reads the lines of a PDF page with their place, size and weight.

Owns: the calls to PDFium per character, and cutting its stream of characters into lines and cells. Does not know what
the lines mean: see retrieval.loaders.pdf.
"""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import pypdfium2
from pypdfium2 import raw

_HYPHEN_AT_LINE_END = 2  # PDFium's own sign, in the stream instead of the hyphen and the line break
_SPACE = 32
_CELL_GAP = 1.1  # in font sizes: wider than any space between words
_SENTENCE_GAP = 2.0  # TeX puts most of the white of a justified line after a full stop
_COLUMN_JUMP = 3.0
_BOLD_NAME = re.compile(r"bold|black|heavy|demi|cmbx|sfbx", re.IGNORECASE)
_BOLD_WEIGHT = 600


@dataclass(slots=True)
class Cell:
    """A piece of a line with no wide gap in it; x in points from the left."""

    text: str
    x0: float
    x1: float


@dataclass(slots=True)
class Line:
    """One line; y is its lower edge, in points upwards, size the height of its font."""

    cells: list[Cell]
    y: float
    size: float
    is_bold: bool
    is_hyphenated: bool = False  # ends in a hyphen that PDFium took for a word break

    @property
    def text(self) -> str:
        """The cells with a space between."""
        return " ".join(cell.text for cell in self.cells)

    @property
    def x0(self) -> float:
        """Left edge."""
        return min(cell.x0 for cell in self.cells)

    @property
    def x1(self) -> float:
        """Right edge."""
        return max(cell.x1 for cell in self.cells)


@dataclass(slots=True)
class _Sign:
    """One visible character; the box is turned so that the page's text runs from left to right."""

    code: int
    index: int  # in PDFium's text page
    left: float
    low: float
    right: float
    size: float  # of the font, in points
    turns: int  # quarter turns counter-clockwise
    follows_space: bool


def read_lines(page: pypdfium2.PdfPage) -> list[Line]:
    """Return a page's lines in the order of its content, which is the reading order in all but a few files.

    Text that runs in another direction than most of the page (a note along the rim) is left out.
    """
    text_page = page.get_textpage()
    try:
        return _merge_rows(list(_cut_lines(list(_read_signs(text_page)), text_page)))
    finally:
        text_page.close()


def _read_signs(text_page: pypdfium2.PdfTextPage) -> Iterator[_Sign | None]:
    """Yield the visible characters; None ends a line."""
    handle = text_page.raw
    box, matrix = raw.FS_RECTF(), raw.FS_MATRIX()
    box_pointer, matrix_pointer = ctypes.byref(box), ctypes.byref(matrix)
    follows_space = False
    for index in range(text_page.count_chars()):
        code = raw.FPDFText_GetUnicode(handle, index)
        if code in {10, 13}:
            yield None
        elif code in {0, _SPACE, 0xA0}:
            follows_space = True
        elif raw.FPDFText_GetLooseCharBox(handle, index, box_pointer):
            raw.FPDFText_GetMatrix(handle, index, matrix_pointer)
            turns = round(math.atan2(matrix.b, matrix.a) / (math.pi / 2)) % 4
            size = raw.FPDFText_GetFontSize(handle, index) * math.hypot(matrix.a, matrix.b)
            left, low, right = _turn(box, turns)
            yield _Sign(code, index, left, low, right, size, turns, follows_space)
            follows_space = False
    yield None


def _turn(box: raw.FS_RECTF, turns: int) -> tuple[float, float, float]:
    """Return (left, low, right) of a box as one sees it when text turned so many times stands upright."""
    return (
        (box.left, box.bottom, box.right),
        (box.bottom, -box.right, box.top),
        (-box.right, -box.top, -box.left),
        (-box.top, box.left, -box.bottom),
    )[turns]


def _cut_lines(signs: list[_Sign | None], text_page: pypdfium2.PdfTextPage) -> Iterator[Line]:
    turns = Counter(sign.turns for sign in signs if sign).most_common(1)
    line: list[_Sign] = []
    for sign in signs:
        if sign is not None and sign.turns != turns[0][0]:
            continue
        if line and (sign is None or sign.code == _HYPHEN_AT_LINE_END or _is_elsewhere(line[-1], sign)):
            yield _close_line(line, text_page, is_hyphenated=sign is not None and sign.code == _HYPHEN_AT_LINE_END)
            line = []
        if sign is not None and sign.code != _HYPHEN_AT_LINE_END:
            line.append(sign)


def _is_elsewhere(last: _Sign, sign: _Sign) -> bool:
    """Tell whether a character stands on another line, or far to the left, as in the next column's cell."""
    size = max(last.size, sign.size, 1.0)
    return abs(sign.low - last.low) > 0.8 * size or sign.left < last.left - _COLUMN_JUMP * size


def _close_line(signs: list[_Sign], text_page: pypdfium2.PdfTextPage, *, is_hyphenated: bool) -> Line:
    size = Counter(round(sign.size * 2) / 2 for sign in signs).most_common(1)[0][0] or 1.0
    samples = {signs[0].index, signs[len(signs) // 2].index, signs[-1].index}
    bold = sum(_is_bold(text_page, index) for index in samples)
    return Line(
        list(_cut_cells(signs, size)), median(sign.low for sign in signs), size, bold * 2 > len(samples), is_hyphenated
    )


def _is_bold(text_page: pypdfium2.PdfTextPage, index: int) -> bool:
    """Tell by the font's weight, or by its name: many files give no weight."""
    if raw.FPDFText_GetFontWeight(text_page.raw, index) >= _BOLD_WEIGHT:
        return True
    name = ctypes.create_string_buffer(128)
    raw.FPDFText_GetFontInfo(text_page.raw, index, name, len(name), ctypes.byref(ctypes.c_int()))
    return _BOLD_NAME.search(name.value.decode("utf-8", "replace")) is not None


def _cut_cells(signs: list[_Sign], size: float) -> Iterator[Cell]:
    """Cut a line where a gap is wider than any space between words."""
    cell: list[_Sign] = []
    right = 0.0
    for sign in signs:
        if cell:
            limit = _SENTENCE_GAP if chr(cell[-1].code) in ".,:;!?" else _CELL_GAP
            if sign.left - right > limit * size:
                yield _close_cell(cell)
                cell = []
        right = max(right, sign.right) if cell else sign.right
        cell.append(sign)
    yield _close_cell(cell)


def _close_cell(signs: list[_Sign]) -> Cell:
    codes = "".join((" " if sign.follows_space else "") + chr(sign.code) for sign in signs)
    # PDFium gives signs beyond the basic plane as two surrogates, which UTF-16 puts together again.
    text = codes.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return Cell(" ".join(text.split()), min(sign.left for sign in signs), max(sign.right for sign in signs))


def _merge_rows(lines: list[Line]) -> list[Line]:
    """Put the cells of table rows together that the file keeps apart, in two steps.

    What stands right of the line before belongs to it. A page that is one big table written column by column is sorted
    into rows; columns of prose look alike from afar, but their cells are longer.
    """
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last and abs(last.y - line.y) < 0.5 * last.size and line.x0 - last.x1 >= 0 and not last.is_hyphenated:
            is_touching = line.x0 - last.x1 < _CELL_GAP * last.size
            joined[-1] = _join_lines(last, line, is_touching=is_touching)
        else:
            joined.append(line)
    return _sort_table(joined)


def _join_lines(last: Line, line: Line, *, is_touching: bool) -> Line:
    cells = [*last.cells, *line.cells]
    if is_touching:
        middle = Cell(f"{last.cells[-1].text} {line.cells[0].text}", last.cells[-1].x0, line.cells[0].x1)
        cells = [*last.cells[:-1], middle, *line.cells[1:]]
    return Line(cells, last.y, max(last.size, line.size), last.is_bold and line.is_bold, line.is_hyphenated)


def _sort_table(lines: list[Line]) -> list[Line]:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: -line.y):
        if rows and abs(rows[-1][0].y - line.y) < 0.5 * line.size:
            rows[-1].append(line)
        else:
            rows.append([line])
    cells = [cell for line in lines for cell in line.cells]
    if len(rows) < 4 or median(sum(len(line.cells) for line in row) for row in rows) < 3:
        return lines
    if sum(len(cell.text) for cell in cells) > 28 * len(cells):
        return lines
    return [
        Line(
            sorted((cell for line in row for cell in line.cells), key=lambda cell: cell.x0),
            row[0].y,
            row[0].size,
            all(line.is_bold for line in row),
        )
        for row in rows
    ]
