"""Reading a file of training data in plain Python, one line at a time, with every fault of every line.

JSON lines, and CSV by its ending. Memory stays bounded whatever the file holds: a line that never ends is skipped up to
the next newline and named. Does not know what a row means; core.formats does. Parquet is read in train/, because it
needs a library.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import NotFound
from core.faults import Fault, Record, refuse_faults
from core.formats import Layout, choose_layout, normalize_records
from core.layout import sha256_file

MAX_LINE_BYTES = 4 * 2**20
"""A chat of 4 MiB is about a million tokens: past any context, so a sign of a broken file."""
MAX_DEPTH = 64
"""Objects and lists inside each other; a chat has about six, a tool's schema a few more."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
CSV_DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""What may separate cells, by the file's ending; of several the one that the header has most of."""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A training file without faults.

    Attributes:
        rows: How many.
        sha256: Of the file's bytes.
        layout: How its rows were understood.
    """

    rows: int
    sha256: str
    layout: Layout


def check_file(path: Path, layout: Layout | None = None, param: str = "training_file") -> CheckedFile:
    """Check a whole file, or refuse it with every fault named; no row is kept.

    Args:
        path: JSON lines or CSV.
        layout: How to understand its rows; None tells it by the rows' keys.
        param: Configuration key or request field for the errors.

    Raises:
        NotFound: There is no such file.
        TrainingDataError: One or more rows are faulty, or there is none.
    """
    known = layout or choose_layout(read_records(path, param))
    rows = sum(1 for _ in refuse_faults(path, read_rows(path, known, param), param))
    return CheckedFile(rows, sha256_file(path), known)


def read_rows(path: Path, layout: Layout | None = None, param: str = "training_file") -> Iterator[Record]:
    """Yield each line's number, row in normal form and faults, holding one line at a time.

    Args:
        path: JSON lines or CSV.
        layout: How to understand its rows; None tells it by the rows' keys.
        param: Configuration key or request field for the error.

    Yields:
        (line number from 1, the row or None where it has faults, its faults).

    Raises:
        NotFound: There is no such file.
    """
    return normalize_records(read_records(path, param), layout or choose_layout(read_records(path, param)))


def read_records(path: Path, param: str = "training_file") -> Iterator[Record]:
    """Yield each record of a file as parsed: a JSON value, or a CSV line as {column: text}.

    Raises:
        NotFound: There is no such file.
    """
    if not path.is_file():
        raise NotFound(f"{path}: wanted a training file, found none. Check the path.", param=param)
    delimiters = CSV_DELIMITERS.get(path.suffix.lower())
    return _read_csv(path, delimiters) if delimiters else _read_json_lines(path)


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line's number and bytes; None in place of a line longer than MAX_LINE_BYTES, whose rest is skipped."""
    with path.open("rb") as file:
        number = 0
        while content := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(content) <= MAX_LINE_BYTES:
                yield number, content
                continue
            while content and not content.endswith(b"\n"):
                content = file.readline(MAX_LINE_BYTES)
            yield number, None


def _read_json_lines(path: Path) -> Iterator[Record]:
    for number, content in read_lines(path):
        if content is None:
            yield number, None, [_too_long(number)]
        elif number == 1 and content.startswith(UTF_16_MARKS):
            yield number, None, [Fault(number, "", "wanted UTF-8, found UTF-16", "Save the file as UTF-8")]
            return
        elif number == 1 and content.strip() == b"[":
            problem = "wanted one JSON object on each line, found a JSON array"
            yield (
                number,
                None,
                [Fault(number, "", problem, "Write its elements one a line: jq -c '.[]' IN > OUT.jsonl")],
            )
            return
        elif content.strip():
            value, faults = parse_line(number, content)
            yield number, value, faults


def _too_long(number: int) -> Fault:
    return Fault(number, "", f"found a line of more than {MAX_LINE_BYTES // 2**20} MiB", "Put one row on each line")


def parse_line(number: int, content: bytes) -> tuple[Any, list[Fault]]:
    """Return a line's JSON value, or None and why it has none."""
    problem, fix = "found a NUL byte", "Remove it"
    try:
        if content.startswith(BYTE_ORDER_MARK):
            problem, fix = "found a byte order mark", "Save the file as UTF-8 without BOM"
        elif b"\x00" not in content:
            return _parse_json(content), []
    except UnicodeDecodeError as error:
        problem, fix = f"not UTF-8 at byte {error.start}", "Save the file as UTF-8"
    except json.JSONDecodeError as error:
        problem, fix = f"not JSON at column {error.colno} ({error.msg})", "Put one JSON object on each line"
    except RecursionError:
        problem, fix = "nested too deeply", "A row is a flat list of messages"
    except ValueError as error:
        problem, fix = str(error), "Give each key once, finite numbers and whole characters only"
    return None, [Fault(number, "", problem, fix)]


def _parse_json(content: bytes) -> Any:
    """Return a line's value.

    Raises:
        ValueError: It is not UTF-8 or not JSON, or holds what no tokenizer or program could use.
        RecursionError: Its objects and lists lie too deep inside each other.
    """
    value = _DECODER.decode(content.decode("utf-8"))
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\ud" in content or b"\\uD" in content:
        _check_surrogates(value)
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"found the key {twice!r:.60} twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found the number {name}")


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"found the number {text:.20}, which is too large")
    return number


def _parse_whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"found a number of {len(text)} digits")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates,
    parse_constant=_refuse_constant,
    parse_float=_parse_finite,
    parse_int=_parse_whole,
)


def _check_depth(value: Any) -> None:
    """Refuse a value whose lists and objects lie too deep inside each other.

    Raises:
        RecursionError: They do.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


def _check_surrogates(value: Any) -> None:
    """Refuse a value in which half a character stands: JSON can spell it, UTF-8 and every tokenizer cannot.

    Raises:
        ValueError: One does.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"found half a character (\\u{ord(error.object[error.start]):04x})") from error


class _CsvLines:
    """Feeds a CSV reader decoded lines, and keeps what was wrong with them for the record that they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []

    def __iter__(self) -> Iterator[str]:
        for number, content in read_lines(self.path):
            is_first = number == 1 and content is not None
            # Excel writes a byte order mark, and it can be meant only one way.
            yield self._decode(number, content.removeprefix(BYTE_ORDER_MARK) if is_first and content else content)

    def _decode(self, number: int, content: bytes | None) -> str:
        """Return a line as text; an empty one for a line that cannot be read."""
        if content is None:
            self.faults.append(_too_long(number))
        elif b"\x00" in content:
            self.faults.append(Fault(number, "", "found a NUL byte", "Remove it"))
        else:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError as error:
                problem = f"not UTF-8 at byte {error.start}"
                self.faults.append(Fault(number, "", problem, "Save the file as UTF-8"))
        return "\n"


def _read_csv(path: Path, delimiters: str) -> Iterator[Record]:
    """Yield each record of a CSV file, numbered by the line that it begins on; the first line names the columns."""
    lines = _CsvLines(path)
    head = next(iter(lines), "")
    lines.faults.clear()
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, delimiter=max(delimiters, key=head.count), strict=True)
    header: list[str] | None = None
    while True:
        begins = reader.line_num + 1
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            lines.faults.append(Fault(begins, "", f"not CSV ({error})", "Mend the quotes of this row"))
        faults, lines.faults = lines.faults, []
        if faults:
            yield begins, None, faults
        elif header is None:
            header = cells or None
            if header and (len(set(header)) < len(header) or not all(name.strip() for name in header)):
                problem = f"wanted a name of its own for each column, found {', '.join(header):.200}"
                yield begins, None, [Fault(begins, "", problem, "Name each column once")]
                return
        elif cells and len(cells) != len(header):
            problem = f"wanted {len(header)} cells, found {len(cells)}"
            yield begins, None, [Fault(begins, "", problem, "Put text that holds commas or newlines in quotes")]
        elif cells:
            yield begins, dict(zip(header, cells, strict=True)), []
