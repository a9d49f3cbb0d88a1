"""Loads Word files: paragraphs, headings by style, lists by numbering, tables in their place, notes in the text.

Owns: the meaning of WordprocessingML. Reads the XML itself: python-docx leaves out content controls, tracked
insertions, text boxes and footnotes (docs/decisions/0010-document-loaders.md).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from lxml import etree

from retrieval.loaders.office_package import OfficePackage, find_child, local_name, read_attribute
from retrieval.loaders.outline import Outline, write_table

_HEADING_NAME = re.compile(r"heading ([1-9])")
_TYPED_MARK = re.compile(r"(?:\(?\d{1,3}[.)]|[•●▪◦‣–*-])\s")  # a list whose author typed the marks
_TYPED_BULLET = re.compile(r"^[•●▪◦‣–*-]\s+")
_SKIPPED = frozenset({"del", "moveFrom", "Fallback", "txbxContent", "instrText", "delText", "pPr", "sectPr"})
_NOTES = ("footnotes", "endnotes")
_MAX_STYLE_DEPTH = 20


@dataclass(slots=True)
class _Style:
    name: str
    base: str | None
    level: int | None  # from 0, as Word counts outline levels
    numbering: tuple[str, int] | None


@dataclass(slots=True)
class _Context:
    styles: dict[str, _Style]
    formats: dict[tuple[str, int], str]
    notes: dict[tuple[str, str], str]  # by kind and id
    counters: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))


def load_docx(data: bytes, outline: Outline) -> None:
    """Add a Word file.

    Raises:
        InvalidFile: The file is damaged or encrypted.
    """
    package = OfficePackage(data)
    main = package.find_main_part()
    parts = {kind: next(package.find_related(main, kind), None) for kind in ("styles", "numbering", *_NOTES)}
    roots = {kind: package.read_xml(part) for kind, part in parts.items() if part is not None}
    context = _Context(_read_styles(roots.get("styles")), _read_formats(roots.get("numbering")), {})
    for kind in _NOTES:
        for note in roots.get(kind, ()):
            if read_attribute(note, "type") is None:  # the typed ones are separators
                text = " ".join(_read_text(paragraph, context) for paragraph in note)
                context.notes[local_name(note), read_attribute(note, "id") or ""] = " ".join(text.split())
    body = find_child(package.read_xml(main), "body")
    if body is not None:
        _add_blocks(body, context, outline)


def _add_blocks(body: etree._Element, context: _Context, outline: Outline) -> None:
    """Add the paragraphs and tables of a body, the items of one list as one paragraph of lines."""
    items: list[str] = []

    def end_list() -> None:
        outline.add_text("\n".join(items))
        items.clear()

    for block in _iterate_blocks(body):
        if local_name(block) == "tbl":
            end_list()
            outline.add_text(_write_docx_table(block, context))
            continue
        style = _resolve_style(_style_id(block), context.styles)
        text = _read_text(block, context).strip()
        level = _read_level(block, style)
        if style.name.startswith("toc "):
            continue  # a table of contents repeats the headings
        if text and level is not None:
            end_list()
            outline.add_heading(level, text)
        elif text and (mark := _read_mark(block, style, context)):
            items.append(mark + text.replace("\n", " "))
        elif text and _TYPED_MARK.match(text):
            items.append(_TYPED_BULLET.sub("- ", text))
        elif text:
            end_list()
            outline.add_text(text)
        for box in _iterate_boxes(block):
            end_list()
            _add_blocks(box, context, outline)
    end_list()


def _iterate_blocks(parent: etree._Element) -> Iterator[etree._Element]:
    """Yield paragraphs and tables, also those inside content controls and tracked insertions."""
    for child in parent:
        name = local_name(child)
        if name in {"p", "tbl"}:
            yield child
        elif name in {"sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "AlternateContent", "Choice"}:
            yield from _iterate_blocks(child)


def _iterate_boxes(paragraph: etree._Element) -> Iterator[etree._Element]:
    """Yield the text boxes anchored in a paragraph, once each: the fallback repeats the choice."""
    for child in paragraph:
        name = local_name(child)
        if name == "txbxContent":
            yield child
        elif name not in {"Fallback", "del", "moveFrom"}:
            yield from _iterate_boxes(child)


def _read_text(element: etree._Element, context: _Context) -> str:
    """Return the text of a paragraph as its reader sees it: insertions in, deletions and hidden runs out."""
    parts: list[str] = []
    for child in element:
        name = local_name(child)
        if name in _SKIPPED or (name == "r" and _is_hidden(child)):
            continue
        if name == "t":
            parts.append(child.text or "")
        elif name in {"tab", "ptab"}:
            parts.append(" ")
        elif name in {"br", "cr"}:
            parts.append("\n")
        elif name == "noBreakHyphen":
            parts.append("-")
        elif name in {"footnoteReference", "endnoteReference"}:
            note = context.notes.get((name.removesuffix("Reference"), read_attribute(child, "id") or ""))
            parts.append(f" ({note})" if note else "")
        else:
            parts.append(_read_text(child, context))
    return "".join(parts)


def _is_hidden(run: etree._Element) -> bool:
    vanish = find_child(run, "rPr", "vanish")
    return vanish is not None and read_attribute(vanish, "val") not in {"0", "false", "off"}


def _style_id(paragraph: etree._Element) -> str | None:
    return read_attribute(find_child(paragraph, "pPr", "pStyle"), "val")


def _read_level(paragraph: etree._Element, style: _Style) -> int | None:
    """Return a heading's level, 0 for the document's title; None for other paragraphs."""
    if style.name == "title":
        return 0
    if match := _HEADING_NAME.fullmatch(style.name):
        return int(match.group(1))
    level = read_attribute(find_child(paragraph, "pPr", "outlineLvl"), "val")
    number = int(level) if level is not None and level.isdecimal() else style.level
    return number + 1 if number is not None and number < 9 else None  # 9 says: body text


def _read_mark(paragraph: etree._Element, style: _Style, context: _Context) -> str:
    """Return a list item's "- " or "1. " with its indent, counting numbered items; "" for other paragraphs."""
    numbering = _read_numbering(find_child(paragraph, "pPr", "numPr")) or style.numbering
    if numbering is None or numbering[0] == "0":  # 0 takes the style's numbering away
        return "- " if style.name.startswith("list bullet") else ""
    list_id, level = numbering
    for deeper in range(level + 1, 9):
        context.counters[list_id, deeper] = 0
    form = context.formats.get((list_id, level), "bullet")
    if form == "none":
        return ""
    if form == "bullet":
        return "  " * level + "- "
    context.counters[list_id, level] += 1
    return f"{'  ' * level}{context.counters[list_id, level]}. "


def _read_numbering(properties: etree._Element | None) -> tuple[str, int] | None:
    list_id = read_attribute(find_child(properties, "numId"), "val")
    level = read_attribute(find_child(properties, "ilvl"), "val") or "0"
    if list_id is None:
        return None
    return list_id, min(int(level), 8) if level.isdecimal() else 0


def _read_styles(root: etree._Element | None) -> dict[str, _Style]:
    styles: dict[str, _Style] = {}
    for style in root if root is not None else ():
        if local_name(style) != "style":
            continue
        level = read_attribute(find_child(style, "pPr", "outlineLvl"), "val")
        styles[read_attribute(style, "styleId") or ""] = _Style(
            name=(read_attribute(find_child(style, "name"), "val") or "").lower(),
            base=read_attribute(find_child(style, "basedOn"), "val"),
            level=int(level) if level is not None and level.isdecimal() else None,
            numbering=_read_numbering(find_child(style, "pPr", "numPr")),
        )
    return styles


def _resolve_style(style_id: str | None, styles: dict[str, _Style]) -> _Style:
    """Return a style with what it inherits; a style of one's own that is based on "heading 2" is a heading 2."""
    found = _Style("", None, None, None)
    for _ in range(_MAX_STYLE_DEPTH):  # a chain that bites its tail ends here
        style = styles.get(style_id or "")
        if style is None:
            break
        is_telling = _HEADING_NAME.fullmatch(style.name) is not None or style.name == "title"
        found.name = style.name if is_telling or not found.name else found.name
        found.level = style.level if found.level is None else found.level
        found.numbering = found.numbering or style.numbering
        if is_telling:
            break
        style_id = style.base
    return found


def _read_formats(root: etree._Element | None) -> dict[tuple[str, int], str]:
    """Return the number format ("bullet", "decimal") of every list's levels."""
    abstract: dict[str, dict[int, str]] = {}
    formats: dict[tuple[str, int], str] = {}
    for entry in root if root is not None else ():
        if local_name(entry) == "abstractNum":
            levels = abstract.setdefault(read_attribute(entry, "abstractNumId") or "", {})
            for level in entry:
                number = read_attribute(level, "ilvl") or ""
                if local_name(level) == "lvl" and number.isdecimal():
                    levels[int(number)] = read_attribute(find_child(level, "numFmt"), "val") or "decimal"
        elif local_name(entry) == "num":
            link = read_attribute(find_child(entry, "abstractNumId"), "val") or ""
            for depth, form in abstract.get(link, {}).items():
                formats[read_attribute(entry, "numId") or "", depth] = form
    return formats


def _write_docx_table(table: etree._Element, context: _Context) -> str:
    """Write a table; a cell merged downwards is repeated in every row, inner tables are read as their cell's text."""
    rows: list[list[str]] = []
    for row in _iterate_named(table, "tr"):
        cells: list[str] = []
        for cell in _iterate_named(row, "tc"):
            merge = find_child(cell, "tcPr", "vMerge")
            is_continued = merge is not None and read_attribute(merge, "val") != "restart"
            above = rows[-1][len(cells)] if rows and len(cells) < len(rows[-1]) else ""
            text = above if is_continued else _read_cell(cell, context)
            span = read_attribute(find_child(cell, "tcPr", "gridSpan"), "val") or "1"
            cells += [text, *[""] * (min(int(span), 100) - 1 if span.isdecimal() else 0)]
        rows.append(cells)
    return write_table(rows)


def _iterate_named(parent: etree._Element, wanted: str) -> Iterator[etree._Element]:
    for child in parent:
        name = local_name(child)
        if name == wanted:
            yield child
        elif name in {"sdt", "sdtContent", "customXml", "ins"}:
            yield from _iterate_named(child, wanted)


def _read_cell(cell: etree._Element, context: _Context) -> str:
    parts: list[str] = []
    for block in _iterate_blocks(cell):
        if local_name(block) == "tbl":
            parts.append(_write_docx_table(block, context).replace("\n", "; "))
        else:
            parts.append(_read_text(block, context))
    return " ".join(filter(None, map(str.strip, parts)))
