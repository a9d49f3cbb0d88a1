"""Turns a file into clean text with its headings and pages, whatever its format.

Owns: finding out what a file really is, by its content first and its ending second. Each format has a module of its
own; none of them opens anything but the bytes it is given. Parsers of foreign files belong into a child process: see
retrieval.parsing.
"""

import functools
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePath

from core.errors import InvalidFile, UnsupportedFile, describe_os_error
from core.spelling import spell
from retrieval.document import Document
from retrieval.loaders.outline import Outline

_TEXT_ENDINGS = {"": "text", ".txt": "text", ".text": "text", ".rst": "text", ".log": "text"}
_MARKUP_ENDINGS = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd", ".mdx"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
}
_MAIL_ENDINGS = dict.fromkeys((".eml", ".mht", ".mhtml"), "mail")
_DATA_ENDINGS = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
}
_SOURCE_ENDINGS = dict.fromkeys(
    (
        *(".bat", ".bash", ".c", ".cc", ".cpp", ".cs", ".cu", ".cxx", ".dart", ".ex", ".f90", ".fs", ".go", ".groovy"),
        *(
            ".h",
            ".hpp",
            ".hs",
            ".java",
            ".jl",
            ".js",
            ".jsx",
            ".kt",
            ".lua",
            ".m",
            ".mjs",
            ".php",
            ".pl",
            ".ps1",
            ".py",
        ),
        *(".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".svelte", ".swift", ".ts", ".tsx", ".vb", ".vue", ".zig"),
        *(
            ".adoc",
            ".cfg",
            ".cmake",
            ".conf",
            ".css",
            ".diff",
            ".env",
            ".gradle",
            ".graphql",
            ".ini",
            ".less",
            ".patch",
        ),
        *(".properties", ".proto", ".scss", ".tex", ".tf", ".toml", ".xml", ".yaml", ".yml"),
    ),
    "source",
)
_KIND_BY_ENDING = {**_TEXT_ENDINGS, **_MARKUP_ENDINGS, **_MAIL_ENDINGS, **_DATA_ENDINGS, **_SOURCE_ENDINGS}
_PACKAGED_ENDINGS = {
    ".pdf": "a PDF file",
    ".docx": "a Word file",
    ".xlsx": "an Excel file",
    ".pptx": "a PowerPoint file",
    ".epub": "an EPUB book",
}

_OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
_REFUSED_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3", "a database"),
    (b"{\\rtf", "an RTF file (save it as .docx)"),
    (b"%!PS", "a PostScript file (convert it to PDF)"),
    (b"\x00\x00\x00\x18ftyp", "a video"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio file"),
)


def load_document(path: Path, name: str | None = None) -> Document:
    """Read a file and return its text with headings and pages.

    Args:
        path: A regular file.
        name: What its ending is read from; None: the path.

    Raises:
        InvalidFile: The file is damaged, encrypted or empty, or holds no text (a scanned PDF).
        UnsupportedFile: No loader reads files of this kind.
        NotFound: There is no such file.
        InputError: The file cannot be opened.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise describe_os_error(error, f"read {spell(name or path.name)}") from error
    if not data.strip(b"\0\t\r\n "):
        raise InvalidFile("The file is empty.")
    outline = Outline()
    try:
        _find_loader(data, PurePath(name or path.name))(data, outline)
    except RecursionError as error:
        raise InvalidFile("The file is nested too deeply to be read.") from error
    return outline.build()


def _find_loader(data: bytes, path: PurePath) -> Callable[[bytes, Outline], None]:
    """Choose by magic bytes, then by ending; the format's library is imported only here, so that a start is quick."""
    ending = path.suffix.lower()
    if _is_pdf(data, ending):
        from retrieval.loaders.pdf import load_pdf

        return load_pdf
    if data.startswith(b"PK\x03\x04"):
        return _find_package_loader(data)
    if data.startswith(_OLE_MAGIC):
        # An encrypted Office file is an OLE container with a stream of this name, in UTF-16.
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise InvalidFile("The file is encrypted. Remove its password and upload it again.")
        raise UnsupportedFile("This is an old Office file (.doc, .xls, .ppt). Save it as .docx, .xlsx, .pptx or PDF.")
    for magic, name in _REFUSED_MAGIC:
        if data.startswith(magic):
            raise UnsupportedFile(f"This is {name}, which Loam does not read.")
    if ending in _PACKAGED_ENDINGS:
        raise InvalidFile(f"The file ends in {ending} but is not {_PACKAGED_ENDINGS[ending]}, or it is damaged.")
    if ending not in _KIND_BY_ENDING:
        raise UnsupportedFile(f"Loam does not read files that end in {ending}. {describe_kinds()}")
    return _find_text_loader(data, _KIND_BY_ENDING[ending], path)


def _is_pdf(data: bytes, ending: str) -> bool:
    """Tell whether a file is a PDF: its mark stands in the first 1,024 bytes; but a text may speak of it."""
    begin = data[:1024]
    return begin.lstrip().startswith(b"%PDF-") or (b"%PDF-" in begin and ending not in _KIND_BY_ENDING)


def describe_kinds() -> str:
    """Return a sentence that lists what can be read."""
    return "It reads PDF, DOCX, XLSX, PPTX, EPUB, HTML, Markdown, e-mail, CSV, JSON, JSONL, plain text and source code."


def _find_package_loader(data: bytes) -> Callable[[bytes, Outline], None]:
    from retrieval.loaders import docx, epub, office

    try:
        with zipfile.ZipFile(BytesIO(data)) as package:
            names = frozenset(package.namelist())
    except (zipfile.BadZipFile, ValueError, RuntimeError, OverflowError, EOFError) as error:
        raise InvalidFile("The file is a damaged archive: it was cut off or changed.") from error
    folders = {name.split("/")[0] for name in names}
    if "[Content_Types].xml" in names:
        for folder, loader in (("word", docx.load_docx), ("xl", office.load_xlsx), ("ppt", office.load_pptx)):
            if folder in folders:
                return loader
    if epub.CONTAINER in names:
        return epub.load_epub
    if "content.xml" in names:
        raise UnsupportedFile("This is an OpenDocument file, which Loam does not read. Save it as .docx or PDF.")
    raise UnsupportedFile("This is a zip archive. Unpack it and upload the files one by one.")


def _find_text_loader(data: bytes, kind: str, path: PurePath) -> Callable[[bytes, Outline], None]:
    from retrieval.loaders import plain

    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if kind == "html" or (kind == "text" and start.startswith((b"<!doctype html", b"<html"))):
        from retrieval.loaders.html import load_html

        return load_html
    if kind == "mail":
        from retrieval.loaders.mail import load_mail

        return load_mail
    load = _find_prose_loader(kind, path)
    return lambda content, outline: load(plain.decode_text(content), outline)


def _find_prose_loader(kind: str, path: PurePath) -> Callable[[str, Outline], None]:
    """Return what reads a file once its encoding is known."""
    if kind == "markdown":
        from retrieval.loaders.markdown import load_markdown

        return load_markdown
    if kind == "source":
        from retrieval.loaders.source_code import load_source

        return functools.partial(load_source, name=path.name)
    from retrieval.loaders import plain

    loaders = {"text": plain.load_text, "csv": plain.load_csv, "jsonl": plain.load_json_lines, "json": plain.load_json}
    return loaders[kind]
