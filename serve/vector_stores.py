"""Vector stores as the API has them: retrieval's stores with an owner, a title and a time to live.

A store that the command line made has no row of its own here: it is `local`'s, and its name is its id. Every function
takes the owner and asks SQL for it, so that another's store is as one that does not exist. Does not know HTTP; attached
files are attached_files.py's.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, text

from core.errors import InputError, NotFound
from retrieval.database import read_transaction, write_transaction
from retrieval.departures import note_departure, require_departure
from retrieval.documents import note_erasure
from retrieval.store import Store, make_store, select_store
from retrieval.vectors import EmbedderIdentity
from serve.owners import LOCAL
from serve.windows import Bounds, Window

ID_PREFIX = "vs_"
DAY_S = 86_400
ACTIVE_STEP_S = 60
"""How old the time of the last use may be before it is written anew: not each search shall write."""
STATUSES = ("in_progress", "completed", "failed", "cancelled")

ATTACHED = """
    SELECT f.store_id, f.file_id AS id, f.created_at, f.place, f.status, f.error_code, f.error, f.batch_id,
        f.attributes, f.max_tokens, f.overlap_tokens, f.document, d.id AS document_id, COALESCE(d.size_bytes, 0) AS size
    FROM vector_store_files f LEFT JOIN documents d ON d.store_id = f.store_id AND d.name = f.document
    WHERE f.store_id = :store AND f.status <> 'deleted'
"""
"""A store's files that were attached by the API."""
UNATTACHED = """
    SELECT d.store_id, 'doc-' || d.id AS id, d.updated_at AS created_at, d.place, d.status, d.error_code, d.error,
        NULL AS batch_id, d.set_attributes AS attributes, NULL AS max_tokens, NULL AS overlap_tokens,
        d.name AS document, d.id AS document_id, d.size_bytes AS size
    FROM documents d WHERE d.store_id = :store AND d.is_attached = 0 AND NOT EXISTS (
        SELECT 1 FROM vector_store_files f WHERE f.store_id = d.store_id AND f.document = d.name
    )
"""
"""Documents that the command line brought in. `is_attached` spares the look at those that the worker has settled."""
ENTRIES = f"{ATTACHED} UNION ALL {UNATTACHED}"
"""A store's files, of both kinds."""


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A store as its owner sees it.

    Attributes:
        id: `vs_…`, or the name that the command line gave it; also retrieval's name of it.
        number: Its row.
        title: What the owner calls it.
        created_at: Unix seconds.
        last_active_at: Unix seconds.
        expires_after_days: Days without use after which it ends; None: never.
        metadata: The owner's notes.
    """

    id: str
    number: int
    title: str
    created_at: int
    last_active_at: int
    expires_after_days: int | None
    metadata: dict[str, str] | None

    @property
    def expires_at(self) -> int | None:
        """When it ends, unless it is used before."""
        return None if self.expires_after_days is None else self.last_active_at + self.expires_after_days * DAY_S

    @property
    def is_expired(self) -> bool:
        """Whether it has ended."""
        return self.expires_at is not None and self.expires_at <= time.time()


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a store holds; it takes longer to find out than the store itself, because every file is looked at.

    Attributes:
        counts: Files by status.
        usage_bytes: Of the files that can be found.
    """

    counts: dict[str, int]
    usage_bytes: int


def read_holdings(engine: Engine, store: VectorStore) -> Holdings:
    """Return what a store holds."""
    counting = text(f"SELECT status, COUNT(*) AS files, SUM(size) AS size FROM ({ENTRIES}) GROUP BY status")  # noqa: S608
    with read_transaction(engine) as connection:
        found = connection.execute(counting, {"store": store.number}).all()
    counts = {part.status: int(part.files) for part in found}
    used = sum(int(part.size) for part in found if part.status == "completed")
    return Holdings({status: counts.get(status, 0) for status in STATUSES}, used)


def create_vector_store(
    engine: Engine, embedder: EmbedderIdentity, owner: str, values: Mapping[str, Any]
) -> VectorStore:
    """Make an empty store.

    Args:
        engine: The database.
        embedder: What its vectors will be made with.
        owner: Whose it is.
        values: title, description, metadata, expires_after_days, and the language of its words where it is given.
    """
    name = f"{ID_PREFIX}{secrets.token_hex(12)}"
    store = make_store(engine, name, embedder, values.get("language"))
    statement = text(
        "INSERT INTO vector_stores (store_id, owner, title, description, metadata, expires_after_days, last_active_at) "
        "VALUES (:store, :owner, :title, :description, :metadata, :days, :now)"
    )
    row = {
        "store": store.id,
        "owner": owner,
        "title": values.get("title") or "",
        "description": values.get("description"),
        "metadata": json.dumps(values["metadata"]) if values.get("metadata") is not None else None,
        "days": values.get("expires_after_days"),
        "now": int(time.time()),
    }
    with write_transaction(engine) as connection:
        connection.execute(statement, row)
    return find_vector_store(engine, name, owner)


_SELECT = """
    SELECT s.id AS number, s.name AS id, COALESCE(v.title, s.name) AS title, s.created_at, v.expires_after_days,
        COALESCE(v.last_active_at, s.created_at) AS last_active_at, v.metadata
    FROM stores s LEFT JOIN vector_stores v ON v.store_id = s.id
    WHERE COALESCE(v.owner, 'local') = :owner
        AND (v.store_id IS NOT NULL OR substr(s.name, 1, 3) <> 'vs_')
"""
"""The last condition hides a store for the moment between its two transactions."""


def find_vector_store(engine: Engine, store_id: str, owner: str) -> VectorStore:
    """Return an owner's store.

    Raises:
        NotFound: There is none, or it is another's.
    """
    with read_transaction(engine) as connection:
        return select_vector_store(connection, store_id, owner)


def select_vector_store(connection: Connection, store_id: str, owner: str) -> VectorStore:
    """Return an owner's store within a transaction.

    Raises:
        NotFound: There is none, or it is another's.
    """
    row = connection.execute(text(f"{_SELECT} AND s.name = :id"), {"id": store_id, "owner": owner}).mappings().first()
    if row is None:
        raise NotFound(f"vector store {store_id!r}: there is none. Make it first.", param="vector_store_id")
    return _to_vector_store(row)


def _to_vector_store(row: RowMapping) -> VectorStore:
    return VectorStore(
        id=row["id"],
        number=row["number"],
        title=row["title"],
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
        expires_after_days=row["expires_after_days"],
        metadata=json.loads(row["metadata"]) if row["metadata"] else None,
    )


def list_vector_stores(engine: Engine, owner: str, window: Window) -> tuple[list[VectorStore], bool]:
    """Return one page of an owner's stores, and whether more follow.

    Raises:
        NotFound: The owner has no store of the id `after` or `before`, and had none within the last hour.
    """
    with read_transaction(engine) as connection:
        bounds = Bounds(window, {name: _find_place(connection, owner, name, end) for name, end in window.ends.items()})
        where = "".join(f" AND {condition}" for condition in bounds.list_conditions("s.created_at", "s.id"))
        query = text(f"{_SELECT}{where} {bounds.write_order('s.created_at', 's.id')}")
        rows = connection.execute(query, {"owner": owner, **bounds.values}).mappings().all()
    page, has_more = bounds.cut(rows)
    return [_to_vector_store(row) for row in page], has_more


def _find_place(connection: Connection, owner: str, name: str, store_id: str) -> tuple[int, int]:
    """Return by what a store is ordered, also one that was deleted: its time and its row.

    Raises:
        NotFound: The owner has none of that id, and had none within the last hour.
    """
    row = connection.execute(text(f"{_SELECT} AND s.name = :id"), {"id": store_id, "owner": owner}).mappings().first()
    if row is not None:
        return row["created_at"], row["number"]
    return require_departure(connection, _name_listing(owner), name, store_id)


def _name_listing(owner: str) -> str:
    return f"vector_stores/{owner}"


def update_vector_store(engine: Engine, store_id: str, owner: str, changes: Mapping[str, Any]) -> VectorStore:
    """Change a store's title, metadata or time to live; what is not named stays.

    Raises:
        NotFound: There is none, or it is another's.
        InputError: It has expired: what it held is gone or going.
    """
    columns = {"title": "title", "metadata": "metadata", "expires_after_days": "expires_after_days"}
    with write_transaction(engine) as connection:
        store = select_vector_store(connection, store_id, owner)
        refuse_expired(store)
        _make_row(connection, store)
        for name, value in changes.items():
            stored = json.dumps(value) if name == "metadata" and value is not None else value
            stored = store.title if name == "title" and value is None else stored
            statement = text(f"UPDATE vector_stores SET {columns[name]} = :value WHERE store_id = :store")  # noqa: S608
            connection.execute(statement, {"value": stored, "store": store.number})
    touch_vector_store(engine, store)
    return find_vector_store(engine, store_id, owner)


def _make_row(connection: Connection, store: VectorStore) -> None:
    """Give a store of the command line a row, so that it can hold what the API says of it."""
    connection.execute(
        text(
            "INSERT INTO vector_stores (store_id, owner, title, last_active_at) "
            "VALUES (:store, :owner, :title, :now) ON CONFLICT (store_id) DO NOTHING"
        ),
        {"store": store.number, "owner": LOCAL, "title": store.title, "now": int(time.time())},
    )


def touch_vector_store(engine: Engine, store: VectorStore) -> None:
    """Note that a store is used, which puts off its end."""
    now = int(time.time())
    if now - store.last_active_at < ACTIVE_STEP_S:
        return
    with write_transaction(engine) as connection:
        connection.execute(
            text("UPDATE vector_stores SET last_active_at = :now WHERE store_id = :store"),
            {"now": now, "store": store.number},
        )


def refuse_expired(store: VectorStore) -> None:
    """Refuse work on a store whose time is over.

    Raises:
        InputError: It is.
    """
    if store.is_expired:
        raise InputError(f"vector store {store.id!r}: it has expired. Make another one.", param="vector_store_id")


def delete_vector_store(engine: Engine, store_id: str, owner: str) -> None:
    """Remove a store with all that it holds; nothing of it can be found from now on.

    Raises:
        NotFound: There is none, or it is another's.
    """
    with write_transaction(engine) as connection:
        store = select_vector_store(connection, store_id, owner)
        note_erasure(connection, store.number)
        note_departure(connection, _name_listing(owner), store.id, store.created_at, store.number)
        connection.execute(text("DELETE FROM stores WHERE id = :id"), {"id": store.number})


def is_readable(engine: Engine, name: str, owner: str) -> bool:
    """Tell whether a store is an owner's."""
    try:
        find_vector_store(engine, name, owner)
    except NotFound:
        return False
    return True


def list_expired(engine: Engine) -> list[Store]:
    """Return the stores whose time is over and that still hold something."""
    query = text(
        "SELECT s.name FROM stores s JOIN vector_stores v ON v.store_id = s.id "
        "WHERE v.last_active_at + v.expires_after_days * :day <= :now AND "
        "(EXISTS (SELECT 1 FROM documents d WHERE d.store_id = s.id) OR "
        "EXISTS (SELECT 1 FROM vector_store_files f WHERE f.store_id = s.id))"
    )
    with read_transaction(engine) as connection:
        names = connection.execute(query, {"day": DAY_S, "now": int(time.time())}).scalars().all()
        stores = [select_store(connection, name) for name in names]
    return [store for store in stores if store is not None]
