"""Seals: hashes that rows of chunks and documents are held against, because SQLite has no checksums of its own.

A chunk's `sha256` covers its words, `embeddings_sha256` its vectors, and `seal` both of these and where the chunk
stands. A document's `text_sha256` covers its text, and its `seal` that hash, its name, its place, its attributes,
its file's stamp and how reading it ended. Rows that an earlier Loam wrote lack some of these; doctor adds them. Does
not know what a chunk says. Files attached by the API have seals of their own (serve/attachment_seals.py).
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, text

from core.errors import ContractError
from core.layout import sha256_bytes

logger = logging.getLogger(__name__)

REMEDY = "the database is damaged. Run: python scripts/doctor.py; then restore a backup, or ingest the file again."
SEALED = ("document_id", "ordinal", "start_offset", "end_offset", "page", "sha256", "embeddings_sha256")
SEALED_BEFORE = SEALED[1:]
"""As a seal was made until it named the document."""
DOCUMENT_SEALED_BEFORE = ("store_id", "file", "file_sha256", "text_sha256", "stated_attributes", "set_attributes")
"""As a seal was made until it covered the state."""
DOCUMENT_STATE = ("recipe", "size_bytes", "modified_ns", "inode", "status", "error_code", "error", "updated_at")
DOCUMENT_SEALED = (*DOCUMENT_SEALED_BEFORE, *DOCUMENT_STATE)
DOCUMENT_COLUMNS = (
    "d.id AS document_id, d.store_id, d.name AS file, d.sha256 AS file_sha256, d.text_sha256, d.stated_attributes, "
    f"d.set_attributes, {', '.join(f'd.{column}' for column in DOCUMENT_STATE)}, d.seal AS document_seal"
)
"""What `check_document` wants of a row `d` of documents."""
BATCH = 500

INSERT_CHUNK = text(
    "INSERT INTO chunks (store_id, document_id, ordinal, start_offset, end_offset, page, heading, text, sha256, "
    "embeddings, spans, embeddings_sha256, seal) VALUES (:store_id, :document_id, :ordinal, :start_offset, "
    ":end_offset, :page, :heading, :text, :sha256, :embeddings, :spans, :embeddings_sha256, :seal)"
)
"""Takes what `seal_chunk` returns."""


def hash_chunk(heading: str | None, chunk_text: str) -> str:
    """Return the SHA-256 of what a chunk says, heading included."""
    return hashlib.sha256(f"{heading or ''}\0{chunk_text}".encode()).hexdigest()


def seal_chunk(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a chunk's row with the hash of its vectors and its seal."""
    sealed = {**row, "embeddings_sha256": _hash_vectors(row["embeddings"], row["spans"])}
    return {**sealed, "seal": hash_values(sealed, SEALED)}


def _hash_vectors(embeddings: bytes, spans: bytes | None) -> str:
    return sha256_bytes(embeddings if spans is None else embeddings + spans)


def hash_values(row: Mapping[Any, Any], keys: Sequence[str]) -> str:
    """Return the SHA-256 of some of a row's values, in the order of the keys."""
    return sha256_bytes("\0".join(str(row[key]) for key in keys).encode())


def check_chunk(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose words are not those that were stored.

    Raises:
        ContractError: The hash differs.
    """
    if hash_chunk(row["heading"], row["text"]) != row["sha256"]:
        raise ContractError(f"chunk-{row['id']}: its text is not what was stored; {REMEDY}")


def are_vectors_whole(row: Mapping[Any, Any]) -> bool:
    """Tell whether a chunk's vectors are those that were stored; those without a hash are."""
    data, spans = row["embeddings"], row["spans"]  # of any type where the row is damaged
    if row["embeddings_sha256"] is None:
        return True
    are_bytes = isinstance(data, bytes) and isinstance(spans, bytes | None)
    return are_bytes and _hash_vectors(data, spans) == row["embeddings_sha256"]


def check_embeddings(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose vectors are not those that were stored; a row without their hash passes.

    Raises:
        ContractError: The hash differs.
    """
    if not are_vectors_whole(row):
        raise ContractError(f"chunk-{row['id']}: its vectors are not what was stored; {REMEDY}")


def check_seal(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose place is not what was stored; a row without a seal passes.

    Raises:
        ContractError: The seal differs.
    """
    if row["seal"] is None or row["seal"] == hash_values(row, SEALED):
        return
    if row["seal"] != hash_values(row, SEALED_BEFORE):
        raise ContractError(f"chunk-{row['id']}: its place or hashes are not what was stored; {REMEDY}")


def hash_text(words: str) -> str:
    """Return the SHA-256 of a document's text."""
    return sha256_bytes(words.encode())


def hash_document(row: Mapping[Any, Any]) -> str:
    """Return the seal of a document from the columns that DOCUMENT_SEALED names."""
    return hash_values(row, DOCUMENT_SEALED)


@contextmanager
def keep_sealed(connection: Connection, numbers: Sequence[int]) -> Iterator[None]:
    """Seal documents anew after the body has changed their rows; one that was damaged before stays refused.

    Args:
        connection: In a transaction that writes.
        numbers: Their rows.
    """
    sound = [row["document_id"] for row in _select_sealed(connection, numbers) if is_whole(row)]
    yield
    seal_documents(connection, sound)


def seal_documents(connection: Connection, numbers: Sequence[int]) -> None:
    """Seal some documents as their rows are now, within a transaction.

    Args:
        connection: In a transaction that writes.
        numbers: Their rows.
    """
    seals = [{"id": row["document_id"], "seal": hash_document(row)} for row in _select_sealed(connection, numbers)]
    if seals:
        connection.execute(_SET_SEAL, seals)


def _select_sealed(connection: Connection, numbers: Sequence[int]) -> list[RowMapping]:
    rows: list[RowMapping] = []
    for start in range(0, len(numbers), BATCH):
        rows += connection.execute(_SELECT_SEALED, {"numbers": list(numbers[start : start + BATCH])}).mappings()
    return rows


def select_set_attributes(connection: Connection, store_id: int, name: str) -> str:
    """Return what people have set of a document, as JSON: `{}` where there is none, or where its row is damaged.

    Damage is not carried over into the next version, under a seal of its own: it is told in the log instead.
    """
    query = text(f"SELECT {DOCUMENT_COLUMNS} FROM documents d WHERE d.store_id = :store AND d.name = :name")  # noqa: S608
    row = connection.execute(query, {"store": store_id, "name": name}).mappings().first()
    if row is None or is_whole(row):
        return "{}" if row is None else str(row["set_attributes"])
    logger.warning(
        "document %r: its row was damaged; attributes that were set for it are dropped: set them again", name
    )
    return "{}"


_SELECT_SEALED = text(f"SELECT {DOCUMENT_COLUMNS} FROM documents d WHERE d.id IN :numbers").bindparams(  # noqa: S608
    bindparam("numbers", expanding=True)
)
_SET_SEAL = text("UPDATE documents SET seal = :seal WHERE id = :id")


def is_whole(row: Mapping[Any, Any]) -> bool:
    """Tell whether a document's row is what was stored, as far as its seal reaches; one without a seal is."""
    seal = row["document_seal"]
    return seal is None or seal == hash_document(row) or seal == hash_values(row, DOCUMENT_SEALED_BEFORE)


def check_document(row: Mapping[Any, Any]) -> None:
    """Refuse a document whose name, place, attributes or state are not what was stored; a row without a seal passes.

    Raises:
        ContractError: The seal differs.
    """
    if not is_whole(row):
        raise ContractError(
            f"document {row['file']!r}: its name, attributes, state or hashes are not what was stored; {REMEDY}"
        )


def check_documents(connection: Connection, numbers: Sequence[int]) -> None:
    """Refuse documents, by their rows, of which one is not what was stored.

    Raises:
        ContractError: A seal differs; the first document is named.
    """
    for row in _select_sealed(connection, numbers):
        check_document(row)


def check_text(row: Mapping[Any, Any]) -> None:
    """Refuse a document whose text is not what was stored; a row without its hash passes.

    Raises:
        ContractError: The hash differs.
    """
    words = row["text"]  # of any type where the row is damaged
    if row["text_sha256"] is None:
        return
    if not isinstance(words, str) or hash_text(words) != row["text_sha256"]:
        raise ContractError(f"document {row['file']!r}: its text is not what was stored; {REMEDY}")
