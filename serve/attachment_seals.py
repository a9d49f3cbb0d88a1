"""Seals of attached files: their rows are held against a hash, as the rows of chunks and documents are.

A file's row says which document it became, what people have set of it and how its ingestion ended. Whatever changes a
row seals it anew, unless it was damaged before. Rows that an earlier Loam wrote have no seal; doctor adds one. Does not
know what a file holds (retrieval/seal.py does).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, text

from core.errors import ContractError
from retrieval.database import read_damaged_text
from retrieval.seal import BATCH, hash_values

SEALED = (
    "number", "store_id", "file_id", "document", "status", "batch_id", "error_code", "error", "attributes",
    "max_tokens", "overlap_tokens", "created_at",
)  # fmt: skip
DAMAGED = (
    "its row in the vector store is not what was stored; the database is damaged. Run: python scripts/doctor.py; then "
    "restore a backup, or take the file out of the store and attach it again."
)

_SELECT = text("SELECT * FROM vector_store_files WHERE number IN :numbers").bindparams(
    bindparam("numbers", expanding=True)
)
_SET_SEAL = text("UPDATE vector_store_files SET seal = :seal WHERE number = :number")


def is_file_whole(row: Mapping[Any, Any]) -> bool:
    """Tell whether a row of vector_store_files is what was stored; one without a seal is."""
    return row["seal"] is None or row["seal"] == hash_values(row, SEALED)


def check_files(connection: Connection, numbers: Iterable[int]) -> None:
    """Refuse attached files, by their rows, of which one is not what was stored.

    Raises:
        ContractError: A seal differs; the first file is named.
    """
    for row in select_files(connection, list(numbers)):
        if not is_file_whole(row):
            raise ContractError(f"file {row['file_id']!r}: {DAMAGED}")


@contextmanager
def keep_files_sealed(connection: Connection, numbers: Sequence[int]) -> Iterator[None]:
    """Seal attached files anew after the body has changed their rows; one that was damaged before stays refused.

    Args:
        connection: In a transaction that writes.
        numbers: Their rows.
    """
    sound = [int(row["number"]) for row in select_files(connection, numbers) if is_file_whole(row)]
    yield
    seal_files(connection, sound)


def seal_files(connection: Connection, numbers: Sequence[int]) -> None:
    """Seal attached files as their rows are now, within a transaction.

    Args:
        connection: In a transaction that writes.
        numbers: Their rows.
    """
    seals = [{"number": row["number"], "seal": hash_values(row, SEALED)} for row in select_files(connection, numbers)]
    if seals:
        connection.execute(_SET_SEAL, seals)


def select_files(connection: Connection, numbers: Sequence[int]) -> list[RowMapping]:
    """Return rows of vector_store_files by their numbers; those that are gone are left out."""
    rows: list[RowMapping] = []
    with read_damaged_text(connection):
        for start in range(0, len(numbers), BATCH):
            rows += connection.execute(_SELECT, {"numbers": list(numbers[start : start + BATCH])}).mappings()
    return rows
