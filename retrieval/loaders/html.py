"""Loads HTML, and whatever is first rendered to HTML, as Markdown is.

Owns: what of a page is content, and how lists, tables and code are written as text. Fetches nothing: addresses in the
page are never opened. Does not know Markdown.
"""

import re
from collections.abc import Iterator

from lxml import etree, html

from core.errors import InvalidFile
from retrieval.loaders.outline import Outline, join_line, write_table
from retrieval.loaders.plain import decode_text

# Sidebars and page headers outside the article are boilerplate; inside it they belong to the text.
_BOILERPLATE = frozenset({"header", "footer", "aside"})
_DROPPED = frozenset(
    {
        *("applet", "audio", "base", "button", "canvas", "datalist", "dialog", "embed", "frame", "frameset", "head"),
        *(
            "iframe",
            "input",
            "link",
            "map",
            "meta",
            "nav",
            "noscript",
            "object",
            "optgroup",
            "option",
            "param",
            "script",
        ),
        *("select", "source", "style", "svg", "template", "textarea", "title", "track", "video"),
    }
)
_DROPPED_ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "menu", "menubar"})
_DROPPED_CLASSES = frozenset({"noprint", "reference", "mw-editsection", "sr-only", "visually-hidden"})
_BLOCKS = frozenset(
    {
        *(
            "address",
            "article",
            "aside",
            "blockquote",
            "body",
            "center",
            "dd",
            "details",
            "div",
            "dl",
            "dt",
            "fieldset",
        ),
        *("figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html", "legend", "li", "main", "menu"),
        *("ol", "p", "pre", "section", "summary", "table", "ul", "h1", "h2", "h3", "h4", "h5", "h6"),
    }
)
_APART = _BLOCKS | {"caption", "td", "th", "tr"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "menu"})
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_DECLARED_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_MAX_SPAN = 100  # a cell that claims more columns or rows than this is an attack or an error


def load_html(data: bytes, outline: Outline, above: str = "") -> None:
    """Add an HTML page.

    Args:
        data: The page.
        outline: Where it goes.
        above: The title of the whole that it is a part of, as for `load_markup`.

    Raises:
        InvalidFile: The page cannot be parsed at all.
        UnsupportedFile: The bytes are not text.
    """
    declared = _DECLARED_CHARSET.search(data[:4096])
    charset = declared.group(1).decode("ascii") if declared else None
    if charset and charset.lower().startswith(("utf-16", "utf-32")):
        charset = None  # whoever can read that in bytes reads neither (HTML standard, 4.2.5.4: UTF-8 is meant)
    load_markup(decode_text(data, charset), outline, above)


def load_markup(markup: str, outline: Outline, above: str = "") -> None:
    """Add a page that is decoded already; its title is the first heading where it has no h1.

    Args:
        markup: The page.
        outline: Where it goes.
        above: The title of the whole that it is a part of, a heading of level 0; a page title that repeats it is left
            out, and a page with headings of its own begins below it anew.

    Raises:
        InvalidFile: The page cannot be parsed, or is nested too deeply.
    """
    markup = _XML_DECLARATION.sub("", markup).replace("\0", "")
    parser = html.HTMLParser(remove_comments=True, remove_pis=True, no_network=True, huge_tree=False)
    try:
        page = html.document_fromstring(markup, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise InvalidFile(f"The HTML cannot be read: {error}.") from error
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        # The parser stops there without an exception; what follows would be missing silently.
        raise InvalidFile("The HTML is nested more than 256 deep. Close the tags that were left open.")
    root = _find_content(page)
    if root.find(".//h1") is None:
        first_h1 = page.find(".//h1")
        title = _write_line(first_h1) if first_h1 is not None else page.findtext(".//title") or ""
        if above and above.casefold() in join_line(title).casefold():
            outline.add_heading(0, above if next(root.iter(*_HEADINGS), None) is not None else "")
        else:
            outline.add_heading(1, title)
    _Writer(outline).write_children(root)


def _find_content(page: html.HtmlElement) -> html.HtmlElement:
    """Return the page's only <main>, or else its body."""
    mains = [element for element in page.iter("main") if not _is_dropped(element)]
    mains += [element for element in page.iterfind(".//*[@role='main']") if element.tag != "main"]
    if len(mains) == 1 and mains[0].text_content().strip():
        return mains[0]
    body = page.find("body")
    return page if body is None else body


class _Writer:
    """Walks a page in reading order; text between two blocks is one paragraph."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._line: list[str] = []
        self._is_article = False

    def write_children(self, element: html.HtmlElement) -> None:
        """Write an element's text and children, as paragraphs of their own."""
        self._end_paragraph()
        self._line.append(element.text or "")
        for child in element:
            self._write(child)
            self._line.append(child.tail or "")
        self._end_paragraph()

    def _end_paragraph(self) -> None:
        text = "".join(self._line)
        self._line = []
        if text and not text.isspace():
            self._outline.add_text(_squeeze(text))

    def _write(self, element: html.HtmlElement) -> None:
        tag = element.tag
        if not isinstance(tag, str) or _is_dropped(element):
            return
        if tag not in _BLOCKS and not any(child.tag in _BLOCKS for child in element.iterdescendants()):
            self._line.append(_write_apart(element))
            return
        self._end_paragraph()
        if tag in _HEADINGS:
            self._outline.add_heading(_HEADINGS[tag], _write_line(element))
        elif tag == "pre":
            self._outline.add_text(_keep_lines(element))
        elif tag in _LISTS:
            self._outline.add_text("\n".join(_write_list(element, "")))
        elif tag == "dl":
            self._outline.add_text("\n".join(_write_definitions(element)))
        elif tag == "table" and not _is_layout(element):
            self._outline.add_text(_write_html_table(element))
        elif tag in _BOILERPLATE and not self._is_article:
            for heading in element.iter("h1"):
                self._outline.add_heading(1, _write_line(heading))
        else:
            was_article, self._is_article = self._is_article, self._is_article or tag in {"main", "article"}
            self.write_children(element)
            self._is_article = was_article


def _is_dropped(element: html.HtmlElement) -> bool:
    """Tell whether nobody reads the element: code, navigation, form fields, or hidden by the author."""
    return (
        not isinstance(element.tag, str)
        or element.tag in _DROPPED
        or "hidden" in element.attrib
        or element.get("aria-hidden") == "true"
        or element.get("role", "") in _DROPPED_ROLES
        or _HIDDEN_STYLE.search(element.get("style", "")) is not None
        or not _DROPPED_CLASSES.isdisjoint(element.get("class", "").split())
    )


def _squeeze(text: str) -> str:
    """Collapse white space as a browser does; the line breaks that <br> left as vertical tabs come back."""
    return "\n".join(filter(None, (" ".join(line.split()) for line in re.split(r"\x0b", text))))


def _write_inline(element: html.HtmlElement) -> str:
    """Return the text of an element and what is inside it; <br> becomes a vertical tab, an image its alt text."""
    if element.tag == "br":
        return "\x0b"
    if element.tag == "img":
        return str(element.get("alt", ""))
    parts: list[str] = [element.text or ""]
    for child in element:
        if not _is_dropped(child):
            parts.append(_write_apart(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _write_apart(element: html.HtmlElement) -> str:
    """Return what `_write_inline` does, with spaces around what does not run on, such as a cell."""
    inner = _write_inline(element)
    return f" {inner} " if element.tag in _APART else inner


def _write_line(element: html.HtmlElement) -> str:
    return join_line(_write_inline(element).replace("\x0b", " "))


def _keep_lines(element: html.HtmlElement) -> str:
    return _write_inline(element).replace("\x0b", "\n").expandtabs(4)


def _write_list(element: html.HtmlElement, indent: str) -> Iterator[str]:
    """Yield the lines of a list; an inner list is indented by two spaces."""
    start = element.get("start", "1")
    number = int(start) if start.isdecimal() and len(start) < 10 else 1
    for item in element:
        if _is_dropped(item):
            continue
        if item.tag in _LISTS:  # an inner list outside of any item: wrong, and common
            yield from _write_list(item, indent + "  ")
            continue
        mark = f"{number}. " if element.tag == "ol" else "- "
        number += 1
        yield from _write_item(item, indent, mark)


def _write_item(item: html.HtmlElement, indent: str, mark: str) -> Iterator[str]:
    line = [item.text or ""]
    prefix = indent + mark

    def end_line() -> Iterator[str]:
        nonlocal line, prefix
        text = _squeeze("".join(line))
        line = []
        if text:
            yield prefix + text.replace("\n", f"\n{indent}  ")
            prefix = indent + "  "

    for child in item:
        if _is_dropped(child):
            line.append(child.tail or "")
            continue
        if child.tag in _LISTS:
            yield from end_line()
            yield from _write_list(child, indent + "  ")
        elif child.tag == "pre":
            yield from end_line()
            yield from (f"{indent}  {code}" for code in _keep_lines(child).strip("\n").split("\n"))
        elif child.tag == "table":
            yield from end_line()
            yield from (f"{indent}  {row}" for row in _write_html_table(child).split("\n"))
        elif child.tag in _BLOCKS:
            yield from end_line()
            line.append(_write_inline(child))
            yield from end_line()
        else:
            line.append(_write_inline(child))
        line.append(child.tail or "")
    yield from end_line()


def _write_definitions(element: html.HtmlElement) -> Iterator[str]:
    term = ""
    for entry in element.iter("dt", "dd"):
        text = _write_line(entry)
        if entry.tag == "dt":
            term = text
        elif text:
            yield f"{term.rstrip(':')}: {text}" if term else text


def _is_layout(table: html.HtmlElement) -> bool:
    """Tell whether a table only places things on the page: it holds tables or headings, or has a single column."""
    has_blocks = any(element is not table for element in table.iter("table", *_HEADINGS))
    return has_blocks or all(len(row.findall("td") + row.findall("th")) <= 1 for row in table.iter("tr"))


def _write_html_table(table: html.HtmlElement) -> str:
    caption = table.find("caption")
    lines = [] if caption is None else [_write_line(caption)]
    rows = [row for row in table.iter("tr") if not _is_dropped(row)]
    if rows and all([cell.tag for cell in row if cell.tag in {"td", "th"}] in (["th", "td"], ["th"]) for row in rows):
        for row in rows:  # the names stand in the first column
            cells = [_write_line(cell) for cell in row if cell.tag in {"td", "th"}]
            lines.append(": ".join(filter(None, (cells[0].rstrip(":"), *cells[1:]))))
    else:
        lines.append(write_table(_spread_cells(rows)))
    return "\n".join(filter(None, lines))


def _spread_cells(rows: list[html.HtmlElement]) -> list[list[str]]:
    """Lay cells out on a grid: one that spans rows is repeated in each, a heading also in each of its columns."""
    grid: list[list[str]] = []
    held: dict[int, tuple[int, str]] = {}  # column: rows still to fill, text
    for row in rows:
        cells: list[str] = []

        def fill_held(cells: list[str] = cells) -> None:
            while len(cells) in held:
                left, text = held.pop(len(cells))
                if left > 1:
                    held[len(cells)] = (left - 1, text)
                cells.append(text)

        for cell in row:
            if cell.tag not in {"td", "th"} or _is_dropped(cell):
                continue
            fill_held()
            text = _write_line(cell)
            for offset in range(_read_span(cell, "colspan")):
                if (span := _read_span(cell, "rowspan")) > 1:
                    held[len(cells)] = (span - 1, text)
                cells.append(text if offset == 0 or cell.tag == "th" else "")
        fill_held()
        grid.append(cells)
    return grid


def _read_span(cell: html.HtmlElement, name: str) -> int:
    value = cell.get(name, "1").strip()
    return min(max(int(value), 1), _MAX_SPAN) if value.isdecimal() and len(value) < 6 else 1
