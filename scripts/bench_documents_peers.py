"""What other libraries read of documents, for scripts/bench_documents.py.

    .venv-documents/bin/python scripts/bench_documents_peers.py files.json REPEATS

Runs in an environment of its own (`make bench-loaders`) and imports nothing of Loam. Prints a JSON object for
each file: what each library that is installed and takes its kind made of it, and the rows of its tables.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

Read = Callable[[Path], str]

MAX_REASON_CHARS = 300


def main() -> None:
    """Read every file with every library."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    files, repeats = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    libraries = {name: (kinds, make()) for name, (kinds, make) in LIBRARIES.items() if _is_there(name)}
    say(versions={name: version(name) for name in libraries})
    for name in files:
        path = Path(name)
        kind = path.suffix.lower().lstrip(".")
        readings = {
            library: _measure(read, path, repeats) for library, (kinds, read) in libraries.items() if kind in kinds
        }
        say(path=name, tables=read_tables(path, kind), readings=readings)


def say(**fields: Any) -> None:
    """Print a JSON object on a line."""
    sys.stdout.write(json.dumps(fields) + "\n")


def _is_there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _measure(read: Read, path: Path, repeats: int) -> dict[str, Any]:
    text, best, reason = None, float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        try:
            text = read(path)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, it did not read the file
            words = " ".join(str(error).replace(f"{path.parent}/", "").split())
            reason = f"{type(error).__name__}: {words[:MAX_REASON_CHARS]}"
        best = min(best, time.perf_counter() - start)
    return {"text": text or None, "seconds": best, "error": reason}


def open_markitdown() -> Read:
    """MarkItDown, without plug-ins."""
    from markitdown import MarkItDown

    converter = MarkItDown(enable_plugins=False)
    return lambda path: str(converter.convert(str(path)).text_content)


def open_docling() -> Read:
    """Docling as it comes; what it needs for PDFs it looks for on a hub, which nobody can reach here."""
    from docling.document_converter import DocumentConverter

    converter = DocumentConverter()
    return lambda path: str(converter.convert(str(path)).document.export_to_markdown())


def open_trafilatura() -> Read:
    """Trafilatura, with tables."""
    import trafilatura

    return lambda path: trafilatura.extract(path.read_bytes(), include_tables=True) or ""


def open_pypdfium2() -> Read:
    """PDFium's own text, in the order of the file."""
    import pypdfium2

    def read(path: Path) -> str:
        document = pypdfium2.PdfDocument(path)
        return "\n".join(page.get_textpage().get_text_bounded() for page in document)

    return read


LIBRARIES: dict[str, tuple[set[str], Callable[[], Read]]] = {
    "markitdown": ({"pdf", "docx", "pptx", "xlsx", "html", "csv", "epub", "md", "txt", "eml"}, open_markitdown),
    "docling": ({"pdf", "docx", "pptx", "xlsx", "html", "csv", "md"}, open_docling),
    "trafilatura": ({"html"}, open_trafilatura),
    "pypdfium2": ({"pdf"}, open_pypdfium2),
}
"""By package: the kinds that it takes, and what opens it."""


def read_tables(path: Path, kind: str) -> list[list[list[str]]]:
    """Return the rows of a file's plain tables, read by a library that is none of those compared."""
    readers = {"docx": _read_docx_tables, "xlsx": _read_xlsx_tables, "html": _read_html_tables}
    return [table for table in readers[kind](path) if len(table) > 1] if kind in readers else []


def _read_docx_tables(path: Path) -> list[list[list[str]]]:
    import docx

    return [[[cell.text for cell in row.cells] for row in table.rows] for table in docx.Document(str(path)).tables]


def _read_xlsx_tables(path: Path) -> list[list[list[str]]]:
    import openpyxl

    book = openpyxl.load_workbook(path, data_only=True)
    sheets = [[[str(cell) for cell in row if cell is not None] for row in sheet.values] for sheet in book]
    return [[row for row in sheet if row] for sheet in sheets]


def _read_html_tables(path: Path) -> list[list[list[str]]]:
    """Leave out tables that hold tables: they place things on the page."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(path.read_bytes(), "lxml")
    tables = [table for table in page.find_all("table") if not table.find("table")]
    return [
        [[cell.get_text(" ") for cell in row.find_all(["td", "th"])] for row in table.find_all("tr")]
        for table in tables
    ]


if __name__ == "__main__":
    main()
