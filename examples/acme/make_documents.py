"""Makes the PDF and DOCX documents of the example company from the Markdown texts in sources/.

Run `python examples/acme/make_documents.py` after a change in sources/ and commit both: `sources/NAME.pdf.md` becomes
`documents/NAME.pdf`, `sources/NAME.docx.md` becomes `documents/NAME.docx`. The same sources give the same bytes on
every machine: dates and ids are fixed, and nothing is compressed, because the output of zlib differs between its
versions. The .md, .txt and .html documents are written by hand and are not touched.

Owns: the small Markdown dialect of the sources (see `parse_source`) and how each of its blocks looks in both formats.
Does not know: how Loam reads these files again; that is retrieval's business.
"""

import argparse
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from xml.sax.saxutils import escape

from docx import Document
from docx.document import Document as DocxDocument
from docx.enum.style import WD_STYLE_TYPE
from docx.enum.text import WD_BREAK
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

ACME_DIR = Path(__file__).resolve().parent
AUTHOR = "Acme Water Systems"
FIXED_DATE = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip entry can carry
PAGE_BREAK = "<!-- page -->"
TABLE_STYLE = "Light Grid Accent 1"


class BlockKind(StrEnum):
    """What a block of a source is; the value is for messages only."""

    TITLE = "title"
    HEADING = "heading"
    PARAGRAPH = "paragraph"
    BULLET = "bullet"
    STEP = "step"
    TABLE = "table"
    PAGE_BREAK = "page break"


BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10.5, leading=15, spaceAfter=6)
HANGING = ParagraphStyle("hanging", parent=BODY, leftIndent=14, firstLineIndent=-14)
BOLD = ParagraphStyle("bold", fontName="Helvetica-Bold", spaceAfter=8)
PDF_STYLES = {
    BlockKind.TITLE: ParagraphStyle("title", parent=BOLD, fontSize=20, leading=26),
    BlockKind.HEADING: ParagraphStyle("heading", parent=BOLD, fontSize=14, leading=18, spaceBefore=12, keepWithNext=1),
    BlockKind.PARAGRAPH: BODY,
    BlockKind.BULLET: HANGING,
    BlockKind.STEP: HANGING,
}
DOCX_STYLES = {
    BlockKind.TITLE: "Heading 1",
    BlockKind.HEADING: "Heading 2",
    BlockKind.PARAGRAPH: "Normal",
    BlockKind.BULLET: "List Bullet",
    BlockKind.STEP: "List",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a source: its text, or for a table its rows with the header row first."""

    kind: BlockKind
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()


def parse_source(source: str) -> list[Block]:
    """Split a source into its blocks.

    The dialect: `# title`, `## heading`, `- bullet`, `1. step`, `| table | row |`, `<!-- page -->` for a page break.
    Bullets and steps are one line each; the lines of a paragraph are joined; tables have a header row.

    Args:
        source: The Markdown text.

    Returns:
        The blocks, in the order of the text.
    """
    blocks: list[Block] = []
    for group in re.split(r"\n\s*\n", source.strip()):
        lines = [line.strip() for line in group.splitlines()]
        if lines[0].startswith("|"):
            blocks.append(Block(BlockKind.TABLE, rows=parse_table(lines)))
        elif lines[0] == PAGE_BREAK:
            blocks.append(Block(BlockKind.PAGE_BREAK))
        elif lines[0].startswith("# "):
            blocks.append(Block(BlockKind.TITLE, lines[0][2:]))
        elif lines[0].startswith("## "):
            blocks.append(Block(BlockKind.HEADING, lines[0][3:]))
        elif lines[0].startswith("- "):
            blocks.extend(Block(BlockKind.BULLET, line[2:]) for line in lines)
        elif re.match(r"\d+\. ", lines[0]):
            blocks.extend(Block(BlockKind.STEP, line) for line in lines)
        else:
            blocks.append(Block(BlockKind.PARAGRAPH, " ".join(lines)))
    return blocks


def parse_table(lines: list[str]) -> tuple[tuple[str, ...], ...]:
    """Return the cells of a Markdown table without its ruler line, the header row first."""
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return tuple(row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row))


def make_pdf(blocks: list[Block]) -> bytes:
    """Lay the blocks out as an A4 PDF with larger headings, ruled tables and page numbers.

    Args:
        blocks: The blocks of one source; the first must be its title.

    Returns:
        The bytes of the PDF, the same for the same blocks.
    """
    buffer = io.BytesIO()
    document = BaseDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=25 * mm,
        rightMargin=25 * mm,
        topMargin=25 * mm,
        bottomMargin=25 * mm,
        title=blocks[0].text,
        author=AUTHOR,
        invariant=1,
        pageCompression=0,
    )
    frame = Frame(document.leftMargin, document.bottomMargin, document.width, document.height)
    document.addPageTemplates(PageTemplate(frames=[frame], onPageEnd=draw_page_number))
    document.build([flowable for block in blocks for flowable in lay_out(block)])
    return buffer.getvalue()


def lay_out(block: Block) -> list[Flowable]:
    """Return the PDF elements of one block."""
    if block.kind is BlockKind.PAGE_BREAK:
        return [PageBreak()]
    if block.kind is BlockKind.TABLE:
        return [rule_table(block), Spacer(1, 8)]
    prefix = "\N{BULLET} " if block.kind is BlockKind.BULLET else ""
    return [Paragraph(prefix + escape(block.text), PDF_STYLES[block.kind])]


def rule_table(block: Block) -> Table:
    """Return a PDF table with a grey header row and thin rules."""
    style = TableStyle(
        [
            ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 10),
            ("FONT", (0, 1), (-1, -1), "Helvetica", 10),
            ("BACKGROUND", (0, 0), (-1, 0), colors.lightgrey),
            ("GRID", (0, 0), (-1, -1), 0.5, colors.grey),
        ]
    )
    return Table([list(row) for row in block.rows], style=style, hAlign="LEFT", repeatRows=1)


def draw_page_number(canvas: Canvas, _document: BaseDocTemplate) -> None:
    """Write the page's number at its foot, after the page's text, so that it comes last in the extracted text."""
    canvas.setFont("Helvetica", 8)
    canvas.drawRightString(A4[0] - 25 * mm, 15 * mm, f"Page {canvas.getPageNumber()}")


def make_docx(blocks: list[Block]) -> bytes:
    """Write the blocks as a Word document with heading styles and real tables.

    Steps keep their typed numbers: Word's automatic ones would run on from one list to the next.

    Args:
        blocks: The blocks of one source; the first must be its title.

    Returns:
        The bytes of the DOCX, the same for the same blocks.
    """
    document = Document()
    properties = document.core_properties
    properties.title = blocks[0].text
    properties.author = properties.last_modified_by = AUTHOR
    properties.comments = ""
    properties.created = properties.modified = FIXED_DATE.replace(tzinfo=None)
    for block in blocks:
        if block.kind is BlockKind.PAGE_BREAK:
            document.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
        elif block.kind is BlockKind.TABLE:
            table = document.add_table(rows=0, cols=len(block.rows[0]), style=TABLE_STYLE)
            for row in block.rows:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        else:
            document.add_paragraph(block.text, style=DOCX_STYLES[block.kind])
    drop_ballast(document)
    buffer = io.BytesIO()
    document.save(buffer)
    return fix_zip(buffer.getvalue())


def drop_ballast(document: DocxDocument) -> None:
    """Remove what python-docx's template carries and no document here uses: 0.9 MB of styles and a thumbnail."""
    for relationships in (document.part.rels, document.part.package.rels):
        for key in [key for key, rel in relationships.items() if rel.reltype.endswith(("WithEffects", "thumbnail"))]:
            del relationships[key]
    for style in list(document.styles):
        if style.type == WD_STYLE_TYPE.TABLE and style.name not in (TABLE_STYLE, "Normal Table"):
            style.delete()


def fix_zip(archive: bytes) -> bytes:
    """Write a zip again with fixed dates and without compression, its entries in the same order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.create_system = 3  # else the operating system's own number
            new.writestr(entry, old.read(name))
    return buffer.getvalue()


MAKERS: dict[str, Callable[[list[Block]], bytes]] = {".pdf": make_pdf, ".docx": make_docx}


def make_documents(sources_dir: Path, documents_dir: Path) -> list[Path]:
    """Make every PDF and DOCX from its source.

    Args:
        sources_dir: Folder of `NAME.pdf.md` and `NAME.docx.md`.
        documents_dir: Folder to write to; made when missing.

    Returns:
        The written files, by name.
    """
    documents_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(sources_dir.glob("*.md")):
        target = documents_dir / source.stem
        target.write_bytes(MAKERS[target.suffix](parse_source(source.read_text(encoding="utf-8"))))
        written.append(target)
    return written


def main() -> None:
    """Make the documents where the command line says."""
    parser = argparse.ArgumentParser(description="Make the PDF and DOCX documents of examples/acme from sources/.")
    parser.add_argument("--out", type=Path, default=ACME_DIR / "documents", help="folder to write to")
    written = make_documents(ACME_DIR / "sources", parser.parse_args().out)
    print(f"{len(written)} documents made in {written[0].parent}" if written else "sources/ holds no document")


if __name__ == "__main__":
    main()
