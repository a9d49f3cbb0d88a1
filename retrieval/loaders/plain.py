"""Loads text without mark-up: prose, CSV and JSON lines, in any encoding.

Owns: finding the encoding, and the three layouts that plain text comes in. Knows nothing of other formats.
"""

import codecs
import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from core.errors import InvalidFile, UnsupportedFile
from retrieval.loaders.outline import Outline, write_table

_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MEANT = {"iso8859-1": "cp1252", "iso8859-9": "cp1254"}
"""What pages and mails mean that name these: https://encoding.spec.whatwg.org/#names-and-labels"""
_SAMPLE_BYTES = 64 * 1024
_TELLING_BYTES = 4
_TELLING_WORDS = 20
"""Fewer different bytes or words above ASCII do not tell rare encodings from common ones, which go first."""
_STRAY_SHARE = 0.05
"""Most of the signs above ASCII that may be damaged in a text that is still UTF-8."""
_DELIMITERS = ("\t", ";", "|", ",")  # among equals the first: commas stand in cells, too
_UNDERLINE = re.compile(r"(={3,}|-{3,}|~{3,})\s*")


def decode_text(data: bytes, declared: str | None = None) -> str:
    """Decode bytes by their byte order mark, the declared encoding, as UTF-8, or by the likeliest legacy encoding.

    Args:
        data: The whole file.
        declared: The encoding that the file itself names, as HTML does.

    Raises:
        InvalidFile: The bytes break the encoding that their byte order mark names.
        UnsupportedFile: The bytes are not text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise InvalidFile(f"The file says that it is {encoding.upper()} text, but it is damaged.") from error
    for likely in filter(None, (_guess_wide_encoding(data), declared, "utf-8")):
        try:
            name = codecs.lookup(likely).name
            return data.decode(_MEANT.get(name, name))
        except (ValueError, LookupError):
            continue  # not this one: the next is tried
    if b"\0" in data:
        raise UnsupportedFile("The file is binary, of a kind that Loam does not read.")
    if _is_mostly_utf8(data[:_SAMPLE_BYTES]):
        return data.decode("utf-8", errors="replace")
    # A sample may end inside a character, and a long file may hold a stray byte: one lost sign is no reason to refuse.
    return data.decode(_guess_legacy_encoding(data[:_SAMPLE_BYTES]), errors="replace")


def _is_mostly_utf8(sample: bytes) -> bool:
    """Tell whether hardly any sign of a sample breaks UTF-8, as where a file was cut or bytes were put into it."""
    text = sample.decode("utf-8", errors="replace")
    signs = sum(sign > "\x7f" for sign in text)
    return 0 < text.count("\ufffd") <= _STRAY_SHARE * signs


def _guess_legacy_encoding(sample: bytes) -> str:
    """Return the likeliest encoding, by the languages that are written in it; in doubt Windows-1252, the commonest.

    Raises:
        UnsupportedFile: No encoding makes text of the sample.
    """
    from chardet import EncodingEra, detect_all  # most files are UTF-8 and do not wait for it

    eras, doubt = EncodingEra.MODERN_WEB, 0.5
    if len({byte for byte in sample if byte > 0x7F}) >= _TELLING_BYTES:
        eras, doubt = eras | EncodingEra.LEGACY_ISO, 0.9
        if len({word for word in sample.split() if not word.isascii()}) >= _TELLING_WORDS:
            eras, doubt = eras | EncodingEra.DOS | EncodingEra.LEGACY_MAC, 0.98
    guesses = detect_all(sample, ignore_threshold=True, encoding_era=eras)
    likely = {guess["encoding"]: guess["confidence"] for guess in guesses if guess["encoding"]}
    if not likely:
        raise UnsupportedFile("The file is not text in any known encoding. Save it as UTF-8.")
    best = max(likely, key=likely.__getitem__)
    return "cp1252" if likely.get("Windows-1252", 0) >= doubt * likely[best] else best


def _guess_wide_encoding(data: bytes) -> str | None:
    """Return UTF-16's name where every second byte of a sample is mostly zero, as in Latin text without a mark."""
    sample = data[:_SAMPLE_BYTES]
    if len(sample) < 4 or len(data) % 2:
        return None
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if odd > 0.4 * half and even < 0.1 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 * half and odd < 0.1 * half else None


def load_text(text: str, outline: Outline) -> None:
    """Add prose; a line underlined with = or - (as in README files) is a heading."""
    lines = text.splitlines()
    body: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        underline = lines[index + 1] if index + 1 < len(lines) else ""
        if _is_underlined(line, underline) and (not body or not body[-1].strip()):
            outline.add_text("\n".join(body))
            body = []
            outline.add_heading("=-~".index(underline[0]), line)
            index += 2
        else:
            body.append(line)
            index += 1
    outline.add_text("\n".join(body))


def _is_underlined(line: str, underline: str) -> bool:
    title = line.strip()
    return bool(title) and _UNDERLINE.fullmatch(underline) is not None and len(underline.strip()) >= 0.8 * len(title)


def load_csv(text: str, outline: Outline) -> None:
    """Add a table with commas, semicolons, tabs or bars between the cells.

    Raises:
        InvalidFile: A cell is longer than 131,072 characters or a quote is never closed.
    """
    try:
        rows = _read_rows(text, max(_DELIMITERS, key=functools.partial(_tell_order, text[:_SAMPLE_BYTES])))
    except csv.Error as error:
        raise InvalidFile(f"The CSV file is damaged: {error}.") from error
    outline.add_text(write_table(rows))


def _read_rows(text: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))


def _tell_order(sample: str, delimiter: str) -> float:
    """Return the share of rows, 0 to 1, that agree on how many cells they have, of which one is not many.

    The library's `Sniffer` takes an apostrophe in front of a cell for a quote, which joins rows, and takes seconds over
    quotes that are never closed.
    """
    try:
        widths = [len(row) for row in _read_rows(sample, delimiter) if row]
    except csv.Error:
        return 0.0
    several = Counter(width for width in widths if width > 1)
    return max(several.values(), default=0) / max(1, len(widths))


def load_json_lines(text: str, outline: Outline) -> None:
    """Add one record a line as "name: value" lines, a nested value under its path ("address city: Bonn").

    Raises:
        InvalidFile: A line is not JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidFile(f"Line {number} is not JSON: {error}.") from error
        outline.add_text("\n".join(_write_record(record, "")))


def load_json(text: str, outline: Outline) -> None:
    """Add a JSON file; the members of an outer list are records like those of JSON lines.

    Raises:
        InvalidFile: The file is not JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"The file is not JSON: {error}.") from error
    for record in value if isinstance(value, list) else [value]:
        outline.add_text("\n".join(_write_record(record, "")))


def _write_record(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _write_record(member, f"{path} {key}".strip())
    elif isinstance(value, list):
        for member in value:
            yield from _write_record(member, path)
    elif value is not None and value != "":
        written = value if isinstance(value, str) else json.dumps(value)
        yield f"{path}: {written}" if path else written
