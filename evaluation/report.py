"""Reports: one HTML page that needs nothing else, the same figures as JSON, and a CSV with one line an answer.

A page is a list of sections: text, a table, a figure. A number that was computed from saved answers is a link to the
row that holds them. Nothing here looks at a clock or draws at random: the same input gives the same bytes. Does not
know what the figures mean.
"""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.layout import write_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#4a5568"
PALETTE = ("#718096", "#a0aec0", "#2b6cb0", "#dd6b20", "#2f855a", "#6b46c1", "#b83280")
STYLE = """
:root { color-scheme: light dark; --line: #cbd5e0; --soft: #f7fafc; --link: #2b6cb0; }
@media (prefers-color-scheme: dark) { :root { --line: #4a5568; --soft: #2d3748; --link: #90cdf4; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h1 + h2 + p { font-size: 1.15rem; font-weight: 600; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .92em; }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; max-width: 34rem; } tr:target { outline: 2px solid var(--link); }
a { color: var(--link); } figure { margin: 1rem 0; background: #fff; } figure svg { max-width: 100%; height: auto; }
summary { cursor: pointer; font-weight: 600; font-size: 1.2rem; margin-top: 2.2rem; }
"""


@dataclass(frozen=True, slots=True)
class Link:
    """A cell that leads to a row of the same page.

    Attributes:
        text: What is shown; a number as a number is.
        anchor: The row's anchor.
    """

    text: "str | int | float"
    anchor: str


Cell = str | int | float | Link | None
"""What a table holds: a float is shown with three digits behind the point, large ones with fewer, None as a dash."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        text: Paragraphs, a blank line between them.
        columns: Of the table; empty for no table, all of them empty for one without a heading.
        rows: Of the table, each as long as `columns`.
        anchors: The anchor of each row; empty for none.
        figure: Drawn below the table.
        is_folded: Whether the section is shut until it is clicked or linked to.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    anchors: Sequence[str] = ()
    figure: "Figure | None" = None
    is_folded: bool = False


def write_report(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    values: Mapping[str, Any],
    table: tuple[Sequence[str], Sequence[Sequence[Any]]],
) -> None:
    """Write report.html, report.json and scores.csv into a folder, each whole or not at all.

    Args:
        folder: Where; made where it is missing.
        title: Heading of the page.
        sections: Of the page.
        values: What report.json holds: JSON values.
        table: Columns and rows of scores.csv.

    Raises:
        StorageFull: The disk is full.
    """
    write_file(folder / "report.html", render_html(title, sections))
    write_json(folder / "report.json", dict(values))
    write_file(folder / "scores.csv", render_csv(*table))


def make_anchor(*parts: str) -> str:
    """Return an anchor for a row: the same for the same parts, another for others that differ in letters or digits."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-").lower() for part in parts)


def render_html(title: str, sections: Sequence[Section]) -> str:
    """Return the page. What is not ours is escaped; there is no script in it but the one that opens folds."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for number, section in enumerate(sections):
        parts += _render_section(section, number)
    parts.append(
        "<script>function open_fold(){const row=document.getElementById(decodeURIComponent(location.hash.slice(1)));"
        "const fold=row&&row.closest('details');if(fold){fold.open=true;row.scrollIntoView()}}"
        "addEventListener('hashchange',open_fold);open_fold()</script>"
    )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _render_section(section: Section, number: int) -> list[str]:
    heading = html.escape(section.title)
    parts = [f"<details><summary>{heading}</summary>"] if section.is_folded else [f"<h2>{heading}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.columns:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in section.columns)
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>" if any(section.columns) else "<table><tbody>")
        anchors = section.anchors or [""] * len(section.rows)
        for row, anchor in zip(section.rows, anchors, strict=True):
            start = f'<tr id="{html.escape(anchor)}">' if anchor else "<tr>"
            parts.append(start + "".join(_render_cell(cell) for cell in row) + "</tr>")
        parts.append("</tbody></table>")
    if section.figure is not None:
        parts.append(f"<figure>{render_svg(section.figure, salt=f'figure-{number}')}</figure>")
    if section.is_folded:
        parts.append("</details>")
    return parts


def _render_cell(cell: Cell) -> str:
    value = cell.text if isinstance(cell, Link) else cell
    text = html.escape(show(value))
    if isinstance(cell, Link):
        text = f'<a href="#{html.escape(cell.anchor)}">{text}</a>'
    return f'<td class="{"text" if isinstance(value, str) else "number"}">{text}</td>'


def show(value: str | float | None) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}"


def render_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV; a text that a spreadsheet would run as a formula gets a `'` before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in row])
    return buffer.getvalue()


def render_svg(figure: "Figure", *, salt: str) -> str:
    """Return a figure as an SVG element without date; texts stay texts.

    Args:
        figure: What is drawn.
        salt: Told apart the ids of several figures on one page; the same figure and salt give the same bytes.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    for mark in (' id="', "url(#", 'xlink:href="#'):  # so that ids of two figures differ
        svg = svg.replace(mark, f"{mark}{salt}-")
    return svg


def draw_bars(
    labels: Sequence[str], means: Sequence[float], lows: Sequence[float], highs: Sequence[float], axis: str
) -> "Figure":
    """Draw one bar a label, with its interval; values from 0 to 1.

    Args:
        labels: Below the bars.
        means: Their heights.
        lows: Lower ends of the intervals.
        highs: Upper ends.
        axis: What is shown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.0 * len(labels), 3.2), layout="constrained")
    axes = figure.add_subplot()
    errors = [
        [max(0.0, mean - low) for mean, low in zip(means, lows, strict=True)],
        [max(0.0, high - mean) for mean, high in zip(means, highs, strict=True)],
    ]
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(labels))]
    axes.bar(range(len(labels)), means, color=colours, yerr=errors, capsize=4, ecolor=GREY, width=0.65)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel=axis, ylim=(0, 1))
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure
