"""Loads Excel and PowerPoint files: a sheet is a section, a slide is a page.

Owns: the parts of SpreadsheetML and PresentationML that carry text. Reads values, never formulas' programs.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from lxml import etree

from retrieval.loaders.office_package import OfficePackage, find_child, local_name, read_attribute
from retrieval.loaders.outline import Outline, write_table

_DATE_FORMATS = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})  # ECMA-376, 18.8.30
_FORMAT_LITERALS = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_CELL_NAME = re.compile(r"([A-Z]{1,3})(\d+)")
_EPOCH = datetime(1899, 12, 30)  # noqa: DTZ001 - a spreadsheet's dates have no time zone
_MAX_COLUMNS = 1_000


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
    date_styles = {
        index for part in package.find_related(main, "styles") for index in _find_date_styles(package.read_xml(part))
    }
    for sheet in package.read_xml(main).iter("{*}sheet"):
        kind, target = relationships.get(read_attribute(sheet, "id") or "", ("", ""))
        if kind != "worksheet" or target not in package or sheet.get("state", "visible") != "visible":
            continue  # a chart, or a sheet that its author hid
        outline.add_heading(1, sheet.get("name", ""))
        table: list[list[str]] = []
        last_number = 0
        for number, row in _read_rows(package.read_xml(target), strings, date_styles):
            if number > last_number + 1:
                outline.add_text(write_table(_drop_empty_columns(table)))
                table = []
            table.append(row)
            last_number = number
        outline.add_text(write_table(_drop_empty_columns(table)))


def _read_rows(sheet: etree._Element, strings: list[str], date_styles: set[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield (row number, cells) for the rows that hold a value."""
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
                cells.append(_read_value(cell, strings, date_styles))
        if any(cell.strip() for cell in cells):
            yield number, cells


def _count_column(letters: str) -> int:
    column = 0
    for letter in letters:
        column = column * 26 + ord(letter) - ord("A") + 1
    return column - 1


def _read_value(cell: etree._Element, strings: list[str], date_styles: set[int]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = find_child(cell, "is")
        return "" if inline is None else _join_runs(inline)
    stored = find_child(cell, "v")
    value = "" if stored is None else stored.text or ""
    if kind == "s":
        return strings[int(value)] if value.isdecimal() and int(value) < len(strings) else ""
    if kind == "b":
        return "yes" if value == "1" else "no"
    style = cell.get("s", "")
    return _write_number(value, is_date=style.isdecimal() and int(style) in date_styles) if kind == "n" else value


def _write_number(value: str, *, is_date: bool) -> str:
    try:
        number = float(value)
    except ValueError:
        return value
    if is_date and 0 < number < 2_958_466:  # the year 9999 ends there
        return _write_date(number)
    return f"{number:.15g}"  # 0.1 + 0.2 is stored as 0.30000000000000004


def _write_date(number: float) -> str:
    moment = _EPOCH + timedelta(seconds=round(number * 86_400))
    if number < 1:
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d}" if number == int(number) else f"{moment:%Y-%m-%d %H:%M}"


def _find_date_styles(styles: etree._Element) -> set[int]:
    """Return the cell styles that show a number as a date or a time."""
    dates = set(_DATE_FORMATS)
    for form in styles.iter("{*}numFmt"):
        code = _FORMAT_LITERALS.sub("", form.get("formatCode", "")).lower()
        if any(sign in code for sign in "ymdhs") and form.get("numFmtId", "").isdecimal():
            dates.add(int(form.get("numFmtId", "0")))
    cell_styles = find_child(styles, "cellXfs")
    if cell_styles is None:
        return set()
    return {
        index
        for index, style in enumerate(cell_styles)
        if style.get("numFmtId", "0").isdecimal() and int(style.get("numFmtId", "0")) in dates
    }


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
