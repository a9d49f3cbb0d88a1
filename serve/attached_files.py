"""Files in vector stores: attached, made into documents by the worker, described, taken out.

    attach → row in_progress ─┬─ worker (ingestion.py) → completed | failed
                              └─ cancelled by its batch

The rows in progress are the worker's queue. A row that is taken out while the worker is on it stays as `deleted` until
the worker has removed what it made, so that nothing of it is ever found. Does not know HTTP.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, bindparam, text

from core.errors import ContractError, InputError, LoamError, NotFound
from core.failpoints import reach
from retrieval.attributes import Value, check_attributes
from retrieval.config import ChunkingConfig
from retrieval.database import read_damaged_text, read_transaction, write_transaction
from retrieval.departures import note_departure
from retrieval.documents import OPENAI_ERROR_CODES, note_erasure, put_attributes, read_text
from retrieval.seal import check_documents
from retrieval.searcher import Hit
from retrieval.store import raise_generation, select_store
from retrieval.uploads import Upload, find_upload
from serve.attachment_seals import DAMAGED, check_files, is_file_whole, keep_files_sealed, seal_files
from serve.file_pages import name_listing, select_entry, select_page
from serve.vector_stores import ENTRIES, STATUSES, VectorStore, select_vector_store
from serve.windows import Window

MAX_WAITING = 10_000
"""Files that may wait for the worker, of all owners together."""
BATCH_PREFIX = "vsfb_"


class QueueFull(LoamError):
    """Too many files wait to be ingested."""

    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "queue_full"


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a request wants attached.

    Attributes:
        upload: The file.
        attributes: What filters shall find it by, besides what the file says.
        chunking: How it is cut.
    """

    upload: Upload
    attributes: Mapping[str, Value]
    chunking: ChunkingConfig


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A file of a vector store.

    Attributes:
        id: The upload's id; `doc-…` for a document that the command line brought in.
        document: Its name in the store.
        document_id: Row of its document; None while there is none.
        created_at: Unix seconds.
        status: in_progress, completed, failed or cancelled.
        error: Code and message; None unless it failed.
        attributes: What was set.
        chunking: Most tokens of a chunk and of an overlap; None where the command line chose them.
        size_bytes: Of the file; 0 until it is completed.
        batch_id: The batch that it came with.
    """

    id: str
    document: str
    document_id: int | None
    created_at: int
    status: str
    error: dict[str, str] | None
    attributes: dict[str, Value]
    chunking: tuple[int, int] | None
    size_bytes: int
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Files that were attached together.

    Attributes:
        id: `vsfb_…`.
        created_at: Unix seconds.
        is_cancelled: Whether what waited was called off.
        counts: Its files by status.
    """

    id: str
    created_at: int
    is_cancelled: bool
    counts: dict[str, int]

    @property
    def status(self) -> str:
        """Return in_progress, cancelled, failed (nothing could be read) or completed."""
        if self.counts["in_progress"]:
            return "in_progress"
        if self.is_cancelled:
            return "cancelled"
        is_failed = self.counts["failed"] and not self.counts["completed"]
        return "failed" if is_failed else "completed"


def attach_files(
    engine: Engine, store_id: str, owner: str, attachments: Sequence[Attachment], *, is_batch: bool
) -> str | None:
    """Put files into the worker's queue; one that is in the store already is made anew.

    Args:
        engine: The database.
        store_id: An owner's store.
        owner: Who attaches.
        attachments: What.
        is_batch: Whether they are a batch.

    Returns:
        The batch's id, None where they are none.

    Raises:
        NotFound: There is no such store.
        QueueFull: Too many files wait.
        InputError: Attributes break OpenAI's limits.
        ContractError: One is in the store, and its row is not what was stored.
    """
    for attachment in attachments:
        check_attributes(attachment.attributes)
    now, batch = int(time.time()), f"{BATCH_PREFIX}{secrets.token_hex(12)}" if is_batch else None
    with write_transaction(engine) as connection:
        store = select_vector_store(connection, store_id, owner)
        waiting = count_waiting(connection)
        if waiting + len(attachments) > MAX_WAITING:
            raise QueueFull(
                f"wanted {len(attachments)} more files in the queue, found {waiting} of {MAX_WAITING} places taken. "
                "Try again later.",
                retry_after_s=30,
            )
        if batch:
            connection.execute(
                text("INSERT INTO file_batches (id, store_id, created_at) VALUES (:id, :store, :now)"),
                {"id": batch, "store": store.number, "now": now},
            )
        seal_files(connection, [_attach(connection, store, attachment, batch, now) for attachment in attachments])
    reach("attachments.queued")
    return batch


def count_waiting(connection: Connection) -> int:
    """Return how many files wait to be ingested, in all stores."""
    query = text("SELECT COUNT(*) FROM vector_store_files WHERE status = 'in_progress'")
    return int(connection.execute(query).scalar_one())


def read_waiting(engine: Engine) -> int:
    """Return how many files wait to be ingested, in all stores."""
    with read_transaction(engine) as connection:
        return count_waiting(connection)


def _attach(connection: Connection, store: VectorStore, attachment: Attachment, batch: str | None, now: int) -> int:
    """Put one file into the queue and return its row, which is to be sealed."""
    upload = attachment.upload
    place = {"store": store.number, "file": upload.id}
    find = text("SELECT * FROM vector_store_files WHERE store_id = :store AND file_id = :file")
    with read_damaged_text(connection):
        known = connection.execute(find, place).mappings().first()
    if known is not None and not is_file_whole(known):
        raise ContractError(f"file {upload.id!r}: {DAMAGED}")
    taken = text(
        "SELECT EXISTS (SELECT 1 FROM vector_store_files WHERE store_id = :store AND document = :name) OR "
        "EXISTS (SELECT 1 FROM documents WHERE store_id = :store AND name = :name)"
    )
    is_taken = connection.execute(taken, {"store": store.number, "name": upload.name}).scalar_one()
    number = connection.execute(
        text(
            "INSERT INTO vector_store_files (store_id, file_id, document, status, batch_id, attributes, max_tokens, "
            "overlap_tokens, created_at) VALUES (:store, :file, :document, 'in_progress', :batch, :attributes, "
            ":max_tokens, :overlap_tokens, :now) ON CONFLICT (store_id, file_id) DO UPDATE SET "
            "status = 'in_progress', batch_id = :batch, attributes = :attributes, max_tokens = :max_tokens, "
            "overlap_tokens = :overlap_tokens, error_code = NULL, error = NULL RETURNING number"
        ),
        {
            **place,
            "document": known["document"] if known else f"{upload.id}/{upload.name}" if is_taken else upload.name,
            "batch": batch,
            "attributes": json.dumps(dict(attachment.attributes)),
            "max_tokens": attachment.chunking.max_tokens,
            "overlap_tokens": attachment.chunking.overlap_tokens,
            "now": now,
        },
    )
    return int(number.scalar_one())


def list_attached(
    engine: Engine, store: VectorStore, window: Window, *, status: str | None = None, batch_id: str | None = None
) -> tuple[list[AttachedFile], bool]:
    """Return one page of a store's files, and whether more follow.

    Args:
        engine: The database.
        store: The owner's.
        window: Which part.
        status: Only those; None: all.
        batch_id: Only those of a batch; None: all.

    Raises:
        NotFound: The store has none of the id that the window begins or ends at.
        ContractError: One, or its document, is not what was stored.
    """
    with read_transaction(engine) as connection:
        rows, has_more = select_page(connection, store.number, window, status=status, batch_id=batch_id)
        _check_rows(connection, rows)
    return [_to_attached(row) for row in rows], has_more


def find_attached(engine: Engine, store: VectorStore, file_id: str) -> AttachedFile:
    """Return one of a store's files.

    Raises:
        NotFound: The store has none of that id.
        ContractError: It or its document is not what was stored.
    """
    with read_transaction(engine) as connection:
        row = _select_row(connection, store, file_id)
        _check_rows(connection, [row])
        return _to_attached(row)


def _check_rows(connection: Connection, rows: Sequence[RowMapping]) -> None:
    """Refuse entries of which one, or its document, is not what was stored."""
    check_files(connection, list_numbers(rows))
    check_documents(connection, [row["document_id"] for row in rows if row["document_id"] is not None])


def list_numbers(rows: Sequence[RowMapping]) -> list[int]:
    """Return the rows of the entries that were attached by the API; documents of the command line have none."""
    return [row["place"] for row in rows if row["place"] > 0]


def _select_row(connection: Connection, store: VectorStore, file_id: str) -> RowMapping:
    row = select_entry(connection, store.number, file_id)
    if row is None:
        raise NotFound(f"file {file_id!r}: it is not in this vector store.", param="file_id")
    return row


def _to_attached(row: RowMapping) -> AttachedFile:
    code = row["error_code"] if row["error_code"] in OPENAI_ERROR_CODES else "server_error"
    return AttachedFile(
        id=row["id"],
        document=row["document"],
        document_id=row["document_id"],
        created_at=row["created_at"],
        status=row["status"],
        error={"code": code, "message": row["error"] or ""} if row["status"] == "failed" else None,
        attributes=json.loads(row["attributes"]),
        chunking=None if row["max_tokens"] is None else (row["max_tokens"], row["overlap_tokens"]),
        size_bytes=row["size"] if row["status"] == "completed" else 0,
        batch_id=row["batch_id"],
    )


def set_file_attributes(engine: Engine, store: VectorStore, file_id: str, values: Mapping[str, Any]) -> AttachedFile:
    """Set a file's attributes in place of those that were set before.

    Raises:
        NotFound: The store has no such file.
        InputError: They break OpenAI's limits; every fault is named.
        ContractError: It or its document is not what was stored.
    """
    checked = json.dumps(check_attributes(values))
    with write_transaction(engine) as connection:
        row = _select_row(connection, store, file_id)
        _check_rows(connection, [row])
        with keep_files_sealed(connection, list_numbers([row])):
            connection.execute(
                text("UPDATE vector_store_files SET attributes = :values WHERE store_id = :store AND file_id = :id"),
                {"values": checked, "store": store.number, "id": file_id},
            )
        if row["document_id"] is not None:
            put_attributes(connection, row["document_id"], checked)
        return _to_attached(_select_row(connection, store, file_id))


def detach_file(engine: Engine, store: VectorStore, file_id: str) -> None:
    """Take a file out of a store; nothing of it can be found from now on.

    Raises:
        NotFound: The store has no such file.
    """
    with write_transaction(engine) as connection:
        row = _select_row(connection, store, file_id)
        _remove(connection, row)
    reach("attachment.detached")


def detach_everywhere(engine: Engine, file_id: str) -> None:
    """Take an upload that is being deleted out of every store."""
    with write_transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT f.store_id, f.file_id AS id, f.created_at, f.place, f.status, d.id AS document_id "
                "FROM vector_store_files f LEFT JOIN documents d ON d.store_id = f.store_id AND d.name = f.document "
                "WHERE f.file_id = :file"
            ),
            {"file": file_id},
        ).mappings()
        for row in rows.all():
            _remove(connection, row)
    reach("upload.detached")


def _remove(connection: Connection, entry: RowMapping) -> None:
    """Remove a file's document, and its row unless the worker may be on it."""
    store, document = entry["store_id"], entry["document_id"]
    note_departure(connection, name_listing(store), entry["id"], entry["created_at"], entry["place"])
    if document is not None:
        connection.execute(text("DELETE FROM documents WHERE id = :id"), {"id": document})
        raise_generation(connection, store, has_erased=True)
        note_erasure(connection, store)
    marking = "UPDATE vector_store_files SET status = 'deleted' WHERE number = :number"
    removing = "DELETE FROM vector_store_files WHERE number = :number"
    for number in list_numbers([entry]):
        with keep_files_sealed(connection, [number]):
            change = text(marking if entry["status"] == "in_progress" else removing)
            connection.execute(change, {"number": number})


def read_content(engine: Engine, file: AttachedFile) -> str:
    """Return the text that was read from a file.

    Raises:
        InputError: There is none, or none yet.
        ContractError: It is not what was stored.
    """
    if file.status != "completed" or file.document_id is None:
        raise InputError(f"file {file.id!r}: it is {file.status}, so that it has no content.", param="file_id")
    return read_text(engine, file.document_id)


def find_batch(engine: Engine, store: VectorStore, batch_id: str) -> FileBatch:
    """Return a batch of a store's.

    Raises:
        NotFound: The store has none of that id.
    """
    with read_transaction(engine) as connection:
        row = connection.execute(
            text("SELECT * FROM file_batches WHERE id = :id AND store_id = :store"),
            {"id": batch_id, "store": store.number},
        ).first()
        if row is None:
            raise NotFound(f"file batch {batch_id!r}: this vector store has none of that id.", param="batch_id")
        statuses = text("SELECT status FROM vector_store_files WHERE store_id = :store AND batch_id = :id")
        counts = Counter(connection.execute(statuses, {"id": batch_id, "store": store.number}).scalars())
    return FileBatch(row.id, row.created_at, bool(row.is_cancelled), {status: counts[status] for status in STATUSES})


def cancel_batch(engine: Engine, store: VectorStore, batch_id: str) -> FileBatch:
    """Call off what of a batch is not done; what is done stays.

    Raises:
        NotFound: The store has no such batch.
    """
    waiting = "batch_id = :id AND status = 'in_progress'"
    if find_batch(engine, store, batch_id).status == "in_progress":
        with write_transaction(engine) as connection:
            numbers = text(f"SELECT number FROM vector_store_files WHERE {waiting}")  # noqa: S608  (constants)
            with keep_files_sealed(connection, connection.execute(numbers, {"id": batch_id}).scalars().all()):
                for statement in (
                    "UPDATE file_batches SET is_cancelled = 1 WHERE id = :id",
                    f"UPDATE vector_store_files SET status = 'cancelled' WHERE {waiting}",  # noqa: S608
                ):
                    connection.execute(text(statement), {"id": batch_id})
    return find_batch(engine, store, batch_id)


def name_hits(engine: Engine, hits: Sequence[Hit]) -> dict[str, AttachedFile]:
    """Return the files behind hits, by the ids of their chunks; those that may not be found (any more) are left out.

    Raises:
        ContractError: The row of one is not what was stored.
    """
    query = text(f"SELECT * FROM ({ENTRIES}) WHERE document IN :names AND status = 'completed'").bindparams(  # noqa: S608
        bindparam("names", expanding=True)
    )
    files: dict[tuple[str, str], AttachedFile] = {}
    with read_transaction(engine) as connection:
        for name in {hit.store for hit in hits}:
            store = select_store(connection, name)
            if store is None:
                continue
            names = [hit.file for hit in hits if hit.store == name]
            rows = connection.execute(query, {"store": store.id, "names": names}).mappings().all()
            check_files(connection, list_numbers(rows))
            files |= {(name, row["document"]): _to_attached(row) for row in rows}
    return {hit.chunk_id: files[hit.store, hit.file] for hit in hits if (hit.store, hit.file) in files}


def find_uploads(engine: Engine, owner: str, file_ids: Sequence[str]) -> dict[str, Upload]:
    """Return an owner's uploads by id.

    Raises:
        NotFound: One is not there or another's.
    """
    return {file_id: find_upload(engine, file_id, owner) for file_id in dict.fromkeys(file_ids)}
