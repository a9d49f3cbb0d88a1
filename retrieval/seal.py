"""Seals: hashes that a chunk's row is held against, because SQLite has no checksums of its own.

A chunk's `sha256` covers its words, `embeddings_sha256` its vectors, and `seal` both of these and where the chunk
stands. Rows that an earlier Loam wrote have only the first; doctor adds the others. Does not know what a chunk says.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from core.errors import ContractError
from core.layout import sha256_bytes

REMEDY = "the database is damaged. Run: python scripts/doctor.py; then restore a backup, or ingest the file again."
SEALED = ("ordinal", "start_offset", "end_offset", "page", "sha256", "embeddings_sha256")

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
    return {**sealed, "seal": _hash_place(sealed)}


def _hash_vectors(embeddings: bytes, spans: bytes | None) -> str:
    return sha256_bytes(embeddings if spans is None else embeddings + spans)


def _hash_place(row: Mapping[Any, Any]) -> str:
    return sha256_bytes("\0".join(str(row[key]) for key in SEALED).encode())


def check_chunk(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose words are not those that were stored.

    Raises:
        ContractError: The hash differs.
    """
    if hash_chunk(row["heading"], row["text"]) != row["sha256"]:
        raise ContractError(f"chunk-{row['id']}: its text is not what was stored; {REMEDY}")


def check_embeddings(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose vectors are not those that were stored; a row without their hash passes.

    Raises:
        ContractError: The hash differs.
    """
    data, spans = row["embeddings"], row["spans"]  # of any type where the row is damaged
    if row["embeddings_sha256"] is None:
        return
    are_bytes = isinstance(data, bytes) and isinstance(spans, bytes | None)
    if not are_bytes or _hash_vectors(data, spans) != row["embeddings_sha256"]:
        raise ContractError(f"chunk-{row['id']}: its vectors are not what was stored; {REMEDY}")


def check_seal(row: Mapping[Any, Any]) -> None:
    """Refuse a chunk whose place is not what was stored; a row without a seal passes.

    Raises:
        ContractError: The seal differs.
    """
    if row["seal"] is not None and _hash_place(row) != row["seal"]:
        raise ContractError(f"chunk-{row['id']}: its place or hashes are not what was stored; {REMEDY}")
