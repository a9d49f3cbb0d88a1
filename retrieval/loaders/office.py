"""Loads Excel and PowerPoint files: a sheet is a section, a slide is a page.

Owns: the parts of SpreadsheetML and PresentationML that carry text. Reads values, never formulas' programs.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from lxml import etree

from retrieval.loaders.office_package import OfficePackage, find_child, local_name, read_attribute
from retrieval.loaders.outline import Outline, write_table

_DATE_FORMATS = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})  # ECMA-376, 18.8.30
_FORMAT_LITERALS = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_CELL_NAME = re.compile(r"([A-Z]{1,3})(\d+)")
_DURATION = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
_DURATION_FORMAT = 46  # the one of those that every file knows
_EPOCHS = (datetime(1899, 12, 30), datetime(1904, 1, 1))  # noqa: DTZ001 - a spreadsheet's dates have no time zone
_LAST_DAY = datetime(9999, 12, 31)  # noqa: DTZ001 - nor has the last one that a calendar knows
_MERGED = re.compile(r"([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})")
_MAX_COLUMNS = 1_000


@dataclass(frozen=True, slots=True)
class _Book:
    """What the cells of a workbook refer to.

    Attributes:
        strings: Shared texts.
        dates: Styles that show a number as a date or a time of day.
        durations: Styles that show it as a length of time, which may be longer than a day.
        epoch: Day 0.
    """

    strings: list[str]
    dates: set[int]
    durations: set[int]
    epoch: datetime


def load_xlsx(data: bytes, outline: Outline) -> None:
    """Add an Excel file; an empty row ends a table.

    Raises:
        InvalidFile: The file is damaged or encrypted.
    """
    package = OfficePackage(data)
    main = package.find_main_part()
    relationships = package.read_relationships(main)
    strings = [
        _join_runs(entry) for part in package.find_related(main, "sharedStrings") for entry in package.read_xml(part)
    ]
    workbook = package.read_xml(main)
    properties = find_child(workbook, "workbookPr")
    starts_1904 = properties is not None and properties.get("date1904") in {"1", "true"}
    book = _Book(strings, set(), set(), _EPOCHS[starts_1904])
    for part in package.find_related(main, "styles"):
        _find_date_styles(package.read_xml(part), book)
    for sheet in workbook.iter("{*}sheet"):
        kind, target = relationships.get(read_attribute(sheet, "id") or "", ("", ""))
        if kind != "worksheet" or target not in package or sheet.get("state", "visible") != "visible":
            continue  # a chart, or a sheet that its author hid
        outline.add_heading(1, sheet.get("name", ""))
        table: list[list[str]] = []
        last_number = 0
        for number, row in _read_rows(package.read_xml(target), book):
            if number > last_number + 1:
                outline.add_text(write_table(_drop_empty_columns(table)))
                table = []
            table.append(row)
            last_number = number
        outline.add_text(write_table(_drop_empty_columns(table)))


def _read_rows(sheet: etree._Element, book: _Book) -> Iterator[tuple[int, list[str]]]:
    """Yield (row number, cells) for the rows that hold a value; a cell merged downwards is repeated in every row."""
    merged = _find_merged(sheet)
    held: dict[int, tuple[int, str]] = {}  # column: last row, text
    number = 0
    for row in sheet.iter("{*}row"):
        named = row.get("r", "")
        number = int(named) if named.isdecimal() else number + 1
        cells: list[str] = []
        for cell in row:
            name = _CELL_NAME.fullmatch(cell.get("r", ""))
            column = _count_column(name.group(1)) if name else len(cells)
            if column < _MAX_COLUMNS:
                cells += [""] * (column - len(cells))
                cells.append(_read_value(cell, book))
        if any(cell.strip() for cell in cells):
            held = {column: (last, text) for column, (last, text) in held.items() if last >= number}
            cells += [""] * (1 + max(held, default=-1) - len(cells))
            for column, (_, text) in held.items():
                cells[column] = cells[column] or text
            held |= {column: (last, cells[column]) for column, last in merged[number] if column < len(cells)}
            yield number, cells


def _find_merged(sheet: etree._Element) -> dict[int, list[tuple[int, int]]]:
    """Return the cells that are merged downwards, by their first row: column and last row."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in sheet.iter("{*}mergeCell"):
        place = _MERGED.fullmatch(entry.get("ref", ""))
        if place and int(place[3]) > int(place[2]):
            found[int(place[2])].append((_count_column(place[1]), int(place[3])))
    return found


def _count_column(letters: str) -> int:
    column = 0
    for letter in letters:
        column = column * 26 + ord(letter) - ord("A") + 1
    return column - 1


def _read_value(cell: etree._Element, book: _Book) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = find_child(cell, "is")
        return "" if inline is None else _join_runs(inline)
    stored = find_child(cell, "v")
    value = "" if stored is None else stored.text or ""
    if kind == "s":
        return book.strings[int(value)] if value.isdecimal() and int(value) < len(book.strings) else ""
    if kind == "b":
        return "yes" if value == "1" else "no"
    style = cell.get("s", "")
    return _write_number(value, int(style) if style.isdecimal() else 0, book) if kind == "n" else value


def _write_number(value: str, style: int, book: _Book) -> str:
    try:
        number = float(value)
    except ValueError:
        return value
    days = (_LAST_DAY - book.epoch).days
    if style in book.durations and abs(number) <= days:
        return _write_duration(number)
    if style in book.dates and 0 < number <= days:
        return _write_date(number, book.epoch)
    return f"{number:.15g}"  # 0.1 + 0.2 is stored as 0.30000000000000004


def _write_duration(number: float) -> str:
    minutes, seconds = divmod(round(abs(number) * 86_400), 60)
    written = f"{minutes // 60}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
    return f"-{written}" if number < 0 else written


def _write_date(number: float, epoch: datetime) -> str:
    moment = epoch + timedelta(seconds=round(number * 86_400))
    if number < 1:
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d}" if number == int(number) else f"{moment:%Y-%m-%d %H:%M}"


def _find_date_styles(styles: etree._Element, book: _Book) -> None:
    """Note the cell styles that show a number as a date, a time of day or a length of time."""
    dates, durations = set(_DATE_FORMATS), {_DURATION_FORMAT}
    for form in styles.iter("{*}numFmt"):
        code, number = form.get("formatCode", ""), form.get("numFmtId", "")
        if not number.isdecimal():
            continue
        if _DURATION.search(code):
            durations.add(int(number))
        elif any(sign in _FORMAT_LITERALS.sub("", code).lower() for sign in "ymdhs"):
            dates.add(int(number))
    cell_styles = find_child(styles, "cellXfs")
    for index, style in enumerate(cell_styles if cell_styles is not None else ()):
        number = style.get("numFmtId", "0")
        if number.isdecimal() and int(number) in durations:
            book.durations.add(index)
        elif number.isdecimal() and int(number) in dates:
            book.dates.add(index)


def _drop_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    width = max(map(len, rows), default=0)
    padded = [row + [""] * (width - len(row)) for row in rows]
    kept = [column for column in range(width) if any(row[column] for row in padded)]
    return [[row[column] for column in kept] for row in padded]


def _join_runs(entry: etree._Element) -> str:
    """Join a cell's runs of text; the phonetic guides of Japanese names (rPh) repeat it and are left out."""
    if local_name(entry) == "rPh":
        return ""
    return (entry.text or "") if local_name(entry) == "t" else "".join(map(_join_runs, entry))


def load_pptx(data: bytes, outline: Outline) -> None:
    """Add a PowerPoint file: a slide's title is its heading, its notes follow its text.

    Raises:
        InvalidFile: The file is damaged or encrypted.
    """
    package = OfficePackage(data)
    main = package.find_main_part()
    relationships = package.read_relationships(main)
    number = 0
    for entry in package.read_xml(main).iter("{*}sldId"):
        # Two attributes are called id; the one with a namespace names the relationship.
        names = [str(value) for key, value in entry.attrib.items() if str(key).endswith("}id")]
        _, target = relationships.get(names[0] if names else "", ("", ""))
        if target not in package:
            continue
        number += 1
        slide = package.read_xml(target)
        if slide.get("show") in {"0", "false"}:
            continue
        outline.start_page(number)
        shapes = list(_iterate_shapes(slide))
        # A slide without a title must not stand under the title of the slide before it.
        titles = [_read_paragraphs(shape) for shape in shapes if _placeholder(shape) in {"title", "ctrTitle"}]
        outline.add_heading(1, " ".join(" ".join(lines) for lines in titles) or f"Slide {number}")
        for shape in shapes:
            _add_shape(shape, outline)
        for notes in package.find_related(target, "notesSlide"):
            for shape in _iterate_shapes(package.read_xml(notes)):
                if _placeholder(shape) == "body":
                    outline.add_text("\n".join(_read_paragraphs(shape)))


def _iterate_shapes(slide: etree._Element) -> Iterator[etree._Element]:
    for element in slide.iter("{*}sp", "{*}graphicFrame"):
        if not any(local_name(parent) == "Fallback" for parent in element.iterancestors()):
            yield element


def _placeholder(shape: etree._Element) -> str | None:
    """Return what a shape stands for on its slide's layout ("title", "body", "sldNum"), or None."""
    place = find_child(shape, "nvSpPr", "nvPr", "ph")
    return None if place is None else place.get("type", "obj")


def _add_shape(shape: etree._Element, outline: Outline) -> None:
    if _placeholder(shape) in {"title", "ctrTitle", "sldNum", "ftr", "dt", "hdr"}:
        return
    tables = list(shape.iter("{*}tbl"))
    for table in tables:
        rows = [[" ".join(_read_paragraphs(cell)) for cell in row.iter("{*}tc")] for row in table.iter("{*}tr")]
        outline.add_text(write_table(rows))
    if not tables:
        outline.add_text("\n".join(_read_paragraphs(shape)))


def _read_paragraphs(shape: etree._Element) -> list[str]:
    """Return the paragraphs of a shape, those of deeper levels as list items."""
    lines = []
    for paragraph in shape.iter("{*}p"):
        parts = [" " if local_name(run) == "br" else run.text or "" for run in paragraph.iter("{*}t", "{*}br")]
        level = read_attribute(find_child(paragraph, "pPr"), "lvl") or "0"
        text = "".join(parts).strip()
        if text:
            lines.append(f"{'  ' * (int(level) - 1)}- {text}" if level.isdecimal() and 0 < int(level) < 9 else text)
    return lines
