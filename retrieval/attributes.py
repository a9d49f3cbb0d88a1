"""What is known of a document besides its text: strings, numbers and booleans by key, which searches filter by.

They come from the file (path, folder, extension, modified, size), from the document itself (front matter) and from
people (set by hand or by the API); of one key the latter wins. The table `attributes` is made from the document's row
and is what filters read. Does not know filters or file formats.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, bindparam, text

from core.errors import InputError

Value = str | int | float | bool

MAX_PAIRS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512
MAX_EXACT_INTEGER = 2**53
"""Numbers are compared as 64-bit floats; beyond this, neighbours would be taken for equal."""
BATCH = 500

# Source of the three limits: OpenAI's description of vector store files, VectorStoreFileAttributes.


def check_attributes(values: Mapping[str, Any]) -> dict[str, Value]:
    """Return attributes that a person or a client has set, if they keep within OpenAI's limits.

    Raises:
        InputError: They do not; every fault is named.
    """
    faults = []
    if len(values) > MAX_PAIRS:
        faults.append(f"wanted at most {MAX_PAIRS} pairs, found {len(values)}")
    for key, value in values.items():
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            faults.append(f"key {key[:80]!r}: wanted 1 to {MAX_KEY_CHARS} characters")
        fault = find_fault(value)
        if fault:
            faults.append(f"{key[:80]}: {fault}")
    if faults:
        raise InputError(f"attributes: {'; '.join(faults)}.", param="attributes")
    return dict(values)


def find_fault(value: object) -> str | None:
    """Return what is wrong with an attribute's value, None where nothing is."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "wanted text, found half of a surrogate pair"
        long = len(value) > MAX_VALUE_CHARS
        return f"wanted at most {MAX_VALUE_CHARS} characters, found {len(value)}" if long else None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= MAX_EXACT_INTEGER else f"wanted -2**53 to 2**53, found {value}"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"wanted a finite number, found {value}"
    return f"wanted a string, number or boolean, found {type(value).__name__}"


def fit_attributes(values: Mapping[str, Any]) -> dict[str, Value]:
    """Return what of a document's own statements fits: lists joined, long text cut, the rest left out.

    A document is not refused for what its front matter says, however odd.
    """
    fitted: dict[str, Value] = {}
    for key, value in values.items():
        fit = _fit(value)
        if fit is not None and 1 <= len(key) <= MAX_KEY_CHARS and find_fault(key) is None and len(fitted) < MAX_PAIRS:
            fitted[key] = fit
    return fitted


def _fit(value: Any) -> Value | None:
    if isinstance(value, list):
        value = ", ".join(str(part) for part in value)
    if isinstance(value, str):
        value = value.strip()[:MAX_VALUE_CHARS]
    is_fit = isinstance(value, str | int | float) and value != "" and find_fault(value) is None
    return value if is_fit else None


def describe_file(name: str, size_bytes: int, modified_ns: int) -> dict[str, Value]:
    """Return the attributes that a document has from its file.

    Args:
        name: Path below the source, with "/".
        size_bytes: Of the file.
        modified_ns: When it was changed, nanoseconds since 1970; 0: not known.
    """
    path = PurePosixPath(name)
    folder = "" if path.parent == PurePosixPath() else str(path.parent)
    values: dict[str, Value] = {"path": name, "folder": folder, "extension": path.suffix.lower(), "size": size_bytes}
    if modified_ns:
        values["modified"] = modified_ns // 10**9
    return values


def index_attributes(connection: Connection, documents: Sequence[int]) -> None:
    """Make the rows that filters read anew from those of some documents, within a transaction.

    Args:
        connection: In a transaction that writes.
        documents: Rows of the documents.
    """
    for start in range(0, len(documents), BATCH):
        batch = {"ids": list(documents[start : start + BATCH])}
        connection.execute(_DELETE, batch)
        rows = [row for found in connection.execute(_SELECT, batch).mappings() for row in _make_rows(found)]
        if rows:
            connection.execute(_INSERT, rows)


_DELETE = text("DELETE FROM attributes WHERE document_id IN :ids").bindparams(bindparam("ids", expanding=True))
_SELECT = text(
    "SELECT id, store_id, name, size_bytes, modified_ns, stated_attributes, set_attributes FROM documents "
    "WHERE id IN :ids"
).bindparams(bindparam("ids", expanding=True))
_SELECT_ROWS = text(
    "SELECT document_id, store_id, key, kind, text, number FROM attributes WHERE document_id IN :ids"
).bindparams(bindparam("ids", expanding=True))
_INSERT = text(
    "INSERT INTO attributes (document_id, store_id, key, kind, text, number) "
    "VALUES (:document_id, :store_id, :key, :kind, :text, :number)"
)


def find_stale(connection: Connection) -> list[int]:
    """Return the completed documents whose rows in the table are not those that their own rows make.

    Args:
        connection: In a transaction.
    """
    query = text("SELECT id FROM documents WHERE status = 'completed' ORDER BY id")
    numbers = list(connection.execute(query).scalars())
    stale: list[int] = []
    for start in range(0, len(numbers), BATCH):
        batch = {"ids": numbers[start : start + BATCH]}
        found = connection.execute(_SELECT, batch).mappings().all()
        wanted = {tuple(row.values()) for document in found for row in _make_rows(document)}
        there = {tuple(row) for row in connection.execute(_SELECT_ROWS, batch)}
        stale += sorted({row[0] for row in wanted ^ there})
    return stale


def merge_attributes(row: Mapping[Any, Any]) -> dict[str, Value]:
    """Return the attributes that hold for a document, from its row."""
    return {
        **describe_file(row["name"], row["size_bytes"], row["modified_ns"]),
        **json.loads(row["stated_attributes"]),
        **json.loads(row["set_attributes"]),
    }


def _make_rows(row: Mapping[Any, Any]) -> Iterable[dict[str, Any]]:
    for key, value in merge_attributes(row).items():
        kind, words, number = split_value(value)
        yield {
            "document_id": row["id"],
            "store_id": row["store_id"],
            "key": key,
            "kind": kind,
            "text": words,
            "number": number,
        }


def split_value(value: Value) -> tuple[str, str | None, float | None]:
    """Return a value's kind and the column that holds it: text, or a number; a boolean is 0 or 1 of its own kind."""
    if isinstance(value, str):
        return "text", value, None
    return ("bool" if isinstance(value, bool) else "number"), None, float(value)
