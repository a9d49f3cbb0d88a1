"""A store's documents as rows: what is known of each, and the changes that need no new text.

Renaming, removing, stamping and listing; putting text and chunks in is store.py's. Does not know files or embedders.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, bindparam, text

from core.errors import NotFound
from core.failpoints import reach
from retrieval.attributes import Value, index_attributes, merge_attributes
from retrieval.database import read_transaction, write_transaction
from retrieval.seal import DOCUMENT_COLUMNS, check_document, check_text, is_whole, keep_sealed
from retrieval.source import FileStamp
from retrieval.store import MAX_SQL_PARAMETERS, DocumentStatus, Store, check_there, raise_generation


@dataclass(frozen=True, slots=True)
class KnownDocument:
    """What a store knows of a document, its text left out.

    Attributes:
        id: Its row's number; a new version has another one.
        name: Path below the source, with "/".
        status: Whether it can be found.
        sha256: Of the file's bytes; empty where they could not be read.
        recipe: Everything besides the bytes that decided the chunks, or the failure.
        stamp: Of the file, as it was then.
    """

    id: int
    name: str
    status: DocumentStatus
    sha256: str
    recipe: str
    stamp: FileStamp


@dataclass(frozen=True, slots=True)
class DocumentState:
    """What `action=status files=true` tells about a document; the words are those of OpenAI's vector store files.

    Attributes:
        file: Its name.
        status: in_progress, completed or failed.
        size_bytes: Of the file.
        chunks: How many it has.
        updated_at: Unix seconds.
        last_error: Code (server_error, unsupported_file or invalid_file) and message; None unless it failed.
        attributes: What filters find it by.
    """

    file: str
    status: str
    size_bytes: int
    chunks: int
    updated_at: int
    last_error: dict[str, str] | None
    attributes: dict[str, Value]


OPENAI_ERROR_CODES = frozenset({"unsupported_file", "invalid_file"})
"""Codes that clients know; whatever else went wrong is a server_error to them."""


def read_documents(engine: Engine, store: Store) -> dict[str, KnownDocument]:
    """Return what a store knows of each of its documents, by name; read from an index, no text is touched."""
    query = text(
        "SELECT id, name, status, sha256, recipe, size_bytes, modified_ns, inode FROM documents WHERE store_id = :id"
    )
    with read_transaction(engine) as connection:
        rows = connection.execute(query, {"id": store.id}).all()
    return {
        name: KnownDocument(number, name, DocumentStatus(status), sha256, recipe, FileStamp(size, modified, inode))
        for number, name, status, sha256, recipe, size, modified, inode in rows
    }


def read_failures(engine: Engine, store: Store) -> dict[str, tuple[str, str]]:
    """Return code and message of each document that could not be read, by name; damaged rows are left out."""
    query = text(
        f"SELECT {DOCUMENT_COLUMNS} FROM documents d WHERE d.store_id = :id AND d.status = 'failed'"  # noqa: S608
    )
    with read_transaction(engine) as connection:
        rows = connection.execute(query, {"id": store.id}).mappings().all()
    return {row["file"]: (row["error_code"], row["error"]) for row in rows if is_whole(row)}


def list_documents(engine: Engine, store: Store) -> list[DocumentState]:
    """Return every document of a store with its state, by name.

    Raises:
        ContractError: One is not what was stored.
    """
    query = text(
        f"SELECT {DOCUMENT_COLUMNS}, d.name, "  # noqa: S608  (a constant)
        "(SELECT COUNT(*) FROM chunks c WHERE c.document_id = d.id) AS chunks "
        "FROM documents d WHERE d.store_id = :id ORDER BY d.name"
    )
    with read_transaction(engine) as connection:
        rows = connection.execute(query, {"id": store.id}).mappings().all()
    for row in rows:
        check_document(row)
    return [
        DocumentState(
            file=row["name"],
            status=row["status"],
            size_bytes=row["size_bytes"],
            chunks=row["chunks"],
            updated_at=row["updated_at"],
            last_error=_describe_failure(row["error_code"], row["error"]) if row["status"] == "failed" else None,
            attributes=merge_attributes(row),
        )
        for row in rows
    ]


def _describe_failure(code: str | None, message: str | None) -> dict[str, str]:
    return {"code": code if code in OPENAI_ERROR_CODES else "server_error", "message": message or ""}


def begin_documents(engine: Engine, store: Store, stamps: Mapping[str, FileStamp]) -> None:
    """Note that documents are being made for the first time, in one transaction.

    Args:
        engine: The database.
        store: The store.
        stamps: The file's stamp by name; none of these names may be in the store.

    Raises:
        NotFound: The store has been deleted.
    """
    now = int(time.time())
    rows = [
        {"store_id": store.id, "name": name, "size_bytes": stamp.size_bytes, "now": now}
        for name, stamp in stamps.items()
    ]
    if not rows:
        return
    statement = text(
        "INSERT INTO documents (store_id, name, sha256, recipe, size_bytes, status, text, updated_at) "
        "VALUES (:store_id, :name, '', '', :size_bytes, 'in_progress', '', :now)"
    )
    with write_transaction(engine) as connection:
        check_there(connection, store)
        connection.execute(statement, rows)


def stamp_documents(engine: Engine, stamps: Mapping[int, FileStamp]) -> None:
    """Note that files whose bytes are the same have new stamps, by their document's row.

    Args:
        engine: The database.
        stamps: The new stamp by row.
    """
    if not stamps:
        return
    statement = text("UPDATE documents SET modified_ns = :modified_ns, inode = :inode WHERE id = :id")
    rows = [{"id": number, "modified_ns": stamp.modified_ns, "inode": stamp.inode} for number, stamp in stamps.items()]
    with write_transaction(engine) as connection:
        with keep_sealed(connection, list(stamps)):
            connection.execute(statement, rows)
        index_attributes(connection, list(stamps))


def rename_documents(engine: Engine, renames: Sequence[tuple[KnownDocument, str, FileStamp]]) -> None:
    """Give documents other names, in one transaction; their chunks, ids and vectors stay.

    Args:
        engine: The database.
        renames: Document, new name and stamp; no document of the store may have a new name already.
    """
    if not renames:
        return
    statement = text(
        "UPDATE documents SET name = :name, modified_ns = :modified_ns, inode = :inode, updated_at = :now, "
        "is_attached = 0 WHERE id = :id"
    )
    now = int(time.time())
    rows = [
        {"id": document.id, "name": name, "modified_ns": stamp.modified_ns, "inode": stamp.inode, "now": now}
        for document, name, stamp in renames
    ]
    numbers = [document.id for document, _, _ in renames]
    with write_transaction(engine) as connection:
        with keep_sealed(connection, numbers):
            connection.execute(statement, rows)
        index_attributes(connection, numbers)
        reach("renaming.written")
    reach("renaming.committed")


def read_text(engine: Engine, number: int) -> str:
    """Return the text that was read from a document's file, as it was stored.

    Args:
        engine: The database.
        number: The document's row.

    Raises:
        NotFound: It has gone.
        ContractError: It is not what was stored.
    """
    query = text("SELECT name AS file, text, text_sha256 FROM documents WHERE id = :id")
    with read_transaction(engine) as connection:
        row = connection.execute(query, {"id": number}).mappings().first()
    if row is None:
        raise NotFound("the document has just been removed or replaced. Ask again.", param="file_id")
    check_text(row)
    return str(row["text"])


def put_attributes(connection: Connection, number: int, values: str) -> None:
    """Set what people say of a document, JSON, within a transaction."""
    with keep_sealed(connection, [number]):
        connection.execute(
            text("UPDATE documents SET set_attributes = :values WHERE id = :id"), {"values": values, "id": number}
        )
    index_attributes(connection, [number])


def delete_documents(engine: Engine, store: Store, numbers: Sequence[int]) -> int:
    """Remove documents with their chunks and vectors, in one transaction; gone when this returns.

    Args:
        engine: The database.
        store: The store.
        numbers: Their rows.

    Returns:
        How many were there.
    """
    statement = text("DELETE FROM documents WHERE store_id = :store_id AND id IN :numbers").bindparams(
        bindparam("numbers", expanding=True)
    )
    count = 0
    with write_transaction(engine) as connection:
        for start in range(0, len(numbers), MAX_SQL_PARAMETERS):
            batch = list(numbers[start : start + MAX_SQL_PARAMETERS])
            count += connection.execute(statement, {"store_id": store.id, "numbers": batch}).rowcount
        if count:
            raise_generation(connection, store.id, has_erased=True)
            note_erasure(connection, store.id)
            reach("deletion.written")
    reach("deletion.committed")
    return count


def delete_store(engine: Engine, store: Store) -> None:
    """Remove a store with its documents, chunks and vectors, in one transaction."""
    with write_transaction(engine) as connection:
        note_erasure(connection, store.id)
        connection.execute(text("DELETE FROM stores WHERE id = :id"), {"id": store.id})  # the rest by ON DELETE CASCADE
        reach("store_deletion.written")
    reach("store_deletion.committed")


def note_erasure(connection: Connection, store_id: int) -> None:
    """Note that something was deleted, so that its traces are removed, by the next start if need be (erasure.py)."""
    connection.execute(text("INSERT INTO erasures (store_id) VALUES (:id)"), {"id": store_id})
