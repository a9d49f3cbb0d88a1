"""Loads PDF files by PDFium: paragraphs, headings, lists and tables from where the lines stand on their pages.

Owns: the meaning of lines. Everything here is inferred, for a PDF says only where its signs are; where the signals are
weak, the text stays and the structure goes. Scans have no text and are refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import pypdfium2

from core.errors import InvalidFile
from retrieval.loaders.outline import Outline, find_column_names, write_table
from retrieval.loaders.pdf_lines import Cell, Line, read_lines

MAX_PAGES = 5_000

_COLUMN_STEP = 20.0  # points; lines of a column begin within this of each other, indents included

_BULLET = re.compile(r"^[•●▪◦‣∙·■□–\u2043\uf0b7\uf0a7*-]\s+")
_ITEM = re.compile(r"^(?:- |\(?(?:\d{1,2}|[a-z])[.)]\s)")
_PAGE_NUMBER = re.compile(r"(?:page\s*)?[-–]?\s*\d{1,4}\s*[-–]?(?:\s*(?:of|/)\s*\d{1,4})?", re.IGNORECASE)
_SECTION_NUMBER = re.compile(r"(?:\d{1,3}\.?)+|[A-Z]\.?|[IVX]{1,5}\.?|§\s?\d+")
_DIGITS = re.compile(r"\d+")
_SENTENCE_END = (".", "!", "?", ":", ";", ".”", ".’", '."', ".)")
_OPEN_END = re.compile(r"(?:://\S*/|\w[–—-])$")  # of an address or a number that goes on in the next line
_BULLETS_ALONE = frozenset("•●▪◦‣∙■□")


def load_pdf(data: bytes, outline: Outline) -> None:
    """Add a PDF file, page by page.

    Raises:
        InvalidFile: The file is damaged, needs a password, has too many pages, or holds pictures of text only.
    """
    pages = _read_pages(data)
    if not any(pages):
        raise InvalidFile(
            f"None of the file's {len(pages)} page(s) holds text: it is probably a scan. "
            "Run text recognition (OCR) over it and upload the result."
        )
    pages = _drop_furniture(pages)
    levels = _find_heading_levels(pages)
    words = _HyphenJoiner(pages)
    names: list[str] = []  # of the columns of the table that the last block was, for its rows on the next page
    for number, lines in enumerate(pages, start=1):
        outline.start_page(number)
        for block in _cut_blocks(lines, levels):
            level = _heading_level(block[0], levels)
            if level is not None:
                outline.add_heading(level, words.join(block))
            elif all(len(line.cells) > 1 for line in block):
                rows = _read_columns(block, words)
                names = find_column_names(rows) or (names if names and len(names) == len(rows[0]) else [])
                outline.add_text(write_table(rows if find_column_names(rows) or not names else [names, *rows]))
            else:
                names = []
                outline.add_text("\n".join(_write_items(block, words)))


def _read_pages(data: bytes) -> list[list[Line]]:
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise InvalidFile("The PDF needs a password. Remove it and upload the file again.") from error
        raise InvalidFile("The PDF is damaged or cut off, and cannot be opened.") from error
    try:
        if not 0 < len(document) <= MAX_PAGES:
            raise InvalidFile(f"The PDF has {len(document):,} pages; between 1 and {MAX_PAGES:,} can be read.")
        pages = []
        for index in range(len(document)):
            page = document[index]
            pages.append(read_lines(page))
            page.close()
        return pages
    except pypdfium2.PdfiumError as error:
        raise InvalidFile(f"The PDF is damaged: {error}") from error
    finally:
        document.close()


def _drop_furniture(pages: list[list[Line]]) -> list[list[Line]]:
    """Drop page numbers, and running heads: lines at the rim that come back on most pages but for their digits."""
    rims = [_find_rim(lines) for lines in pages]
    seen = Counter(key for lines in rims for key in {_DIGITS.sub("#", line.text) for line in lines})
    often = max(2, len(pages) // 3)
    kept = []
    for lines, rim in zip(pages, rims, strict=True):
        dropped = {
            id(line) for line in rim if _PAGE_NUMBER.fullmatch(line.text) or seen[_DIGITS.sub("#", line.text)] >= often
        }
        kept.append([line for line in lines if id(line) not in dropped])
    return kept


def _find_rim(lines: list[Line]) -> list[Line]:
    """Return the two highest and the two lowest rows of a page; the lowest only where there are few, none of one."""
    heights = sorted({round(line.y) for line in lines})
    edge = {*heights[:2], *heights[-2:]} if len(heights) > 4 else {*heights[: len(heights) > 1]}
    return [line for line in lines if round(line.y) in edge]


def _find_heading_levels(pages: list[list[Line]]) -> dict[tuple[float, bool], int]:
    """Return the level of every style (size, bold) that headings are set in, 1 for the largest.

    A heading is larger than the text, or bold at its size. A style that makes up a good part of the file is text.
    """
    weights: Counter[tuple[float, bool]] = Counter()
    for lines in pages:
        for line in lines:
            weights[line.size, line.is_bold] += len(line.text)
    total = sum(weights.values())
    body_size, body_bold = weights.most_common(1)[0][0] if weights else (0.0, False)
    styles = [
        (size, bold)
        for (size, bold), weight in weights.items()
        if weight < 0.2 * total and (size >= 1.08 * body_size or (bold and not body_bold and size >= 0.95 * body_size))
    ]
    return {style: level for level, style in enumerate(sorted(styles, reverse=True), start=1)}


def _heading_level(line: Line, levels: dict[tuple[float, bool], int]) -> int | None:
    text = line.text
    is_numbered = len(line.cells) == 2 and _SECTION_NUMBER.fullmatch(line.cells[0].text) is not None
    if (len(line.cells) > 1 and not is_numbered) or not any(sign.isalpha() for sign in text) or _BULLET.match(text):
        return None
    return levels.get((line.size, line.is_bold))


@dataclass(slots=True)
class _Measure:
    """How a page is set: the distance of its lines, and where its columns end on the right, by their left edge."""

    pitch: float
    rights: dict[int, float]

    def find_right(self, line: Line) -> float:
        """Return the right edge of the column that a line stands in, in points."""
        near = round(line.x0 / _COLUMN_STEP)
        return max(self.rights.get(place, line.x1) for place in (near - 1, near, near + 1))


def _measure_page(lines: list[Line]) -> _Measure:
    gaps = [above.y - below.y for above, below in pairwise(lines)]
    close = [gap for gap, line in zip(gaps, lines, strict=False) if 0 < gap < 2.5 * line.size]
    rights: dict[int, float] = {}
    for line in lines:
        place = round(line.x0 / _COLUMN_STEP)
        rights[place] = max(rights.get(place, 0.0), line.x1)
    return _Measure(median(close) if close else 0.0, rights)


def _cut_blocks(lines: list[Line], levels: dict[tuple[float, bool], int]) -> Iterator[list[Line]]:
    """Cut a page into headings, paragraphs, lists and tables."""
    measure = _measure_page(lines)
    block: list[Line] = []
    for line in lines:
        if block and _is_new_block(block, line, measure, levels):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _is_new_block(block: list[Line], line: Line, measure: _Measure, levels: dict[tuple[float, bool], int]) -> bool:
    last = block[-1]
    if last.is_hyphenated:
        return False
    level, last_level = _heading_level(line, levels), _heading_level(last, levels)
    gap = last.y - line.y
    if level is not None or last_level is not None:  # the second line of a long heading belongs to it
        return level != last_level or not 0 < gap < 1.6 * line.size
    is_row, was_row = len(line.cells) > 1, len(last.cells) > 1
    if is_row or was_row:
        is_apart = not 0 < gap < 4 * line.size
        return is_apart if is_row == was_row else not (_is_item(last) or _is_item(line))
    return _is_new_paragraph(block, line, gap, measure)


def _is_new_paragraph(block: list[Line], line: Line, gap: float, measure: _Measure) -> bool:
    last = block[-1]
    is_other_size = abs(line.size - last.size) > 0.15 * last.size
    if gap < -line.size:  # the next column, or whatever stands beside: the sentence may go on there
        return is_other_size or last.text.endswith(_SENTENCE_END)
    if is_other_size or gap > 1.35 * max(measure.pitch, line.size):
        return not (_is_item(line) and _is_item(block[0]))
    right = measure.find_right(last)
    ended_early = last.text.endswith(_SENTENCE_END) and last.x1 < right - 0.15 * (right - last.x0)
    if _is_item(line):
        return not ended_early and not _is_item(block[0]) and not last.text.endswith(_SENTENCE_END)
    item = next(filter(_is_item, reversed(block)), None)
    if item is not None and line.x0 > item.x0 + 0.3 * line.size:
        return False  # indented as the item's text is
    return ended_early or (item is not None and line.x0 < item.x0 - 0.3 * line.size)


def _is_item(line: Line) -> bool:
    return _ITEM.match(_BULLET.sub("- ", line.text)) is not None or line.cells[0].text in _BULLETS_ALONE


def _write_items(block: list[Line], words: "_HyphenJoiner") -> Iterator[str]:
    """Join the lines of a paragraph; each list item in it begins a line of its own."""
    item: list[Line] = []
    for line in block:
        if item and _is_item(line) and not item[-1].is_hyphenated:
            yield _BULLET.sub("- ", words.join(item))
            item = []
        item.append(line)
    yield _BULLET.sub("- ", words.join(item))


def _read_columns(block: list[Line], words: "_HyphenJoiner") -> list[list[str]]:
    """Return lines with gaps as the rows of a table; columns of prose as one row each, one after the other."""
    columns = _find_columns(cell for line in block for cell in line.cells)
    cells = [cell for line in block for cell in line.cells]
    if len(columns) < 2:  # gaps in unlike places: no table
        return [[cell.text for cell in line.cells] for line in block]
    if len(block) > 4 and sum(len(cell.text) for cell in cells) > 32 * len(cells):
        return [[words.join(side)] for column in columns if (side := list(_take_column(block, column)))]
    rows = [[""] * len(columns) for _ in block]
    for row, line in zip(rows, block, strict=True):
        for cell in line.cells:
            column = next(index for index, (x0, x1) in enumerate(columns) if x0 <= cell.x0 and cell.x1 <= x1)
            row[column] = f"{row[column]} {cell.text}".strip()
    return rows


def _take_column(block: list[Line], column: tuple[float, float]) -> Iterator[Line]:
    for line in block:
        cells = [cell for cell in line.cells if column[0] <= cell.x0 and cell.x1 <= column[1]]
        if cells:
            yield Line(cells, line.y, line.size, line.is_bold)


def _find_columns(cells: Iterable[Cell]) -> list[tuple[float, float]]:
    """Return the stretches of the page's width that the cells cover, from left to right."""
    columns: list[tuple[float, float]] = []
    for cell in sorted(cells, key=lambda cell: cell.x0):
        if columns and cell.x0 <= columns[-1][1]:
            columns[-1] = (columns[-1][0], max(columns[-1][1], cell.x1))
        else:
            columns.append((cell.x0, cell.x1))
    return columns


class _HyphenJoiner:
    """Joins wrapped lines; decides by the rest of the file whether a hyphen at a line's end belongs to the word."""

    def __init__(self, pages: list[list[Line]]) -> None:
        self._words = {
            word.strip(".,;:!?()\"'“”").lower() for lines in pages for line in lines for word in line.text.split()
        }

    def join(self, lines: list[Line]) -> str:
        """Return the lines as one."""
        text = ""
        is_broken = False  # PDFium took the hyphen away already
        for line in lines:
            if is_broken or (text.endswith("-") and text[-2:-1].isalpha() and line.text[:1].islower()):
                text = self._join_word(text.rstrip("-"), line.text)
            elif _OPEN_END.search(text):
                text += line.text
            else:
                text = f"{text} {line.text}" if text else line.text
            is_broken = line.is_hyphenated
        return text

    def _join_word(self, start: str, rest: str) -> str:
        first = (start.rsplit(maxsplit=1) or [""])[-1].lower()
        second = rest.split(maxsplit=1)[0].strip(".,;:!?()\"'“”").lower()
        is_compound = f"{first}-{second}" in self._words and f"{first}{second}" not in self._words
        return f"{start}-{rest}" if is_compound or not rest[:1].islower() else start + rest
