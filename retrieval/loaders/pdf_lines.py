"""Reads the lines of a PDF page with their place, size and weight.

Owns: the calls to PDFium per character, and cutting its stream of characters into lines and cells. Does not know what
the lines mean: see retrieval.loaders.pdf.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import pypdfium2
from pypdfium2 import raw

BOLD_WEIGHT = 600
_HYPHEN_AT_LINE_END = 0xFFFE  # PDFium's own sign, in the stream instead of the hyphen and the line break
_CELL_GAP = 1.0  # in font sizes; justified text stays below
_COLUMN_JUMP = 3.0


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
class _OpenLine:
    """Characters of the line that is being read."""

    signs: list[tuple[int, float, float]] = field(default_factory=list)  # code, left, right
    lows: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    bold: int = 0

    def close(self, *, is_hyphenated: bool = False) -> Iterator[Line]:
        """Yield the line unless it is blank, and begin the next."""
        if self.sizes:
            size = Counter(round(value * 2) / 2 for value in self.sizes).most_common(1)[0][0] or 1.0
            cells = list(_cut_cells(self.signs, size))
            if cells:
                yield Line(cells, median(self.lows), size, self.bold * 2 > len(self.sizes), is_hyphenated)
        self.signs, self.lows, self.sizes, self.bold = [], [], [], 0


def read_lines(page: pypdfium2.PdfPage) -> list[Line]:
    """Return a page's lines in the order of its content, which is the reading order in all but a few files."""
    text_page = page.get_textpage()
    try:
        lines = list(_iterate_lines(text_page, page.get_rotation()))
    finally:
        text_page.close()
    return _merge_rows(lines)


def _iterate_lines(text_page: pypdfium2.PdfTextPage, rotation: int) -> Iterator[Line]:
    handle = text_page.raw
    box = raw.FS_RECTF()
    pointer = ctypes.byref(box)
    line = _OpenLine()
    for index in range(text_page.count_chars()):
        code = raw.FPDFText_GetUnicode(handle, index)
        if code in {10, 13}:
            yield from line.close()
            continue
        if code == _HYPHEN_AT_LINE_END:
            yield from line.close(is_hyphenated=True)
            continue
        if code in {0, 32, 0xA0} or not raw.FPDFText_GetLooseCharBox(handle, index, pointer):
            if line.signs and code:
                line.signs.append((32, line.signs[-1][2], line.signs[-1][2]))
            continue
        left, low, right, high = _turn(box, rotation)
        size = high - low
        if line.lows and (
            abs(low - line.lows[-1]) > 0.8 * max(size, 1) or left < line.signs[-1][1] - _COLUMN_JUMP * size
        ):
            yield from line.close()
        line.signs.append((code, left, right))
        line.lows.append(low)
        line.sizes.append(size)
        line.bold += raw.FPDFText_GetFontWeight(handle, index) >= BOLD_WEIGHT
    yield from line.close()


def _turn(box: raw.FS_RECTF, rotation: int) -> tuple[float, float, float, float]:
    """Return (left, low, right, high) as the reader of a turned page sees them; rotation in degrees clockwise."""
    if rotation == 90:
        return box.bottom, -box.right, box.top, -box.left
    if rotation == 180:
        return -box.right, -box.top, -box.left, -box.bottom
    if rotation == 270:
        return -box.top, box.left, -box.bottom, box.right
    return box.left, box.bottom, box.right, box.top


def _cut_cells(signs: list[tuple[int, float, float]], size: float) -> Iterator[Cell]:
    """Cut a line where a gap is wider than any space between words."""
    codes: list[int] = []
    x0 = x1 = 0.0
    for code, left, right in signs:
        if codes and code != 32 and left - x1 > _CELL_GAP * size:
            yield from _close_cell(codes, x0, x1)
            codes = []
        if not codes:
            x0, x1 = left, right
        codes.append(code)
        x0, x1 = min(x0, left), max(x1, right)
    yield from _close_cell(codes, x0, x1)


def _close_cell(codes: list[int], x0: float, x1: float) -> Iterator[Cell]:
    # PDFium gives signs beyond the basic plane as two surrogates, which UTF-16 puts together again.
    text = "".join(map(chr, codes)).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if text.strip():
        yield Cell(" ".join(text.split()), x0, x1)


def _merge_rows(lines: list[Line]) -> list[Line]:
    """Put a page that is one big table back into rows: some programs write such a page column by column.

    Columns of prose look alike from afar; their cells are longer than those of a table.
    """
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
    merged = []
    for row in rows:
        ordered = sorted((cell for line in row for cell in line.cells), key=lambda cell: cell.x0)
        merged.append(Line(ordered, row[0].y, row[0].size, all(line.is_bold for line in row)))
    return merged
