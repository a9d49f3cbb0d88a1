"""Pages of what a vector store holds: a page costs its page, however many files there are.

Attached files and documents of the command line are each read along an index in the list's order, from where the page
before has ended, and no further than the page reaches. Does not know what an entry means; attached_files.py does.
"""

import re

from sqlalchemy import Connection, RowMapping, text

from retrieval.database import read_damaged_text
from retrieval.departures import require_departure
from serve.vector_stores import ATTACHED, UNATTACHED
from serve.windows import Bounds, Window

DOCUMENT_ID = re.compile(r"doc-([1-9][0-9]{0,17})")


def select_page(
    connection: Connection, store: int, window: Window, *, status: str | None = None, batch_id: str | None = None
) -> tuple[list[RowMapping], bool]:
    """Return one page of a store's entries, and whether more follow in the window's direction.

    Args:
        connection: In a transaction.
        store: The store's row.
        window: Which part. What it begins or ends at need not be of the status or the batch (any more).
        status: Only those; None: all.
        batch_id: Only those of a batch; None: all.

    Raises:
        NotFound: The store has none of the id `after` or `before`, and had none within the last hour.
    """
    ends = window.ends.items()
    bounds = Bounds(window, {name: _find_place(connection, store, name, end) for name, end in ends})
    arms = []
    for select, moment, place, its_status in (
        (ATTACHED, "f.created_at", "f.place", "f.status"),
        (UNATTACHED, "d.updated_at", "d.place", "d.status"),
    ):
        if batch_id is not None and select is UNATTACHED:
            continue
        conditions = bounds.list_conditions(moment, place)
        if batch_id is not None:
            conditions.append("f.batch_id = :batch")
        if status is not None:  # NOT: that of a batch's files, which are few, shall not choose the index
            conditions.append(f"{its_status} = :status" if batch_id is None else f"NOT {its_status} <> :status")
        where = "".join(f" AND {condition}" for condition in conditions)
        arms.append(f"SELECT * FROM ({select}{where} {bounds.write_order(moment, place)})")  # noqa: S608  (constants)
    query = text(f"{' UNION ALL '.join(arms)} {bounds.write_order('created_at', 'place')}")
    asked = {"store": store, "status": status, "batch": batch_id, **bounds.values}
    with read_damaged_text(connection):
        return bounds.cut(connection.execute(query, asked).mappings().all())


def select_entry(connection: Connection, store: int, entry_id: str) -> RowMapping | None:
    """Return one of a store's entries; None where it has none of that id.

    Args:
        connection: In a transaction.
        store: The store's row.
        entry_id: An upload's id, or `doc-…`.
    """
    matched = DOCUMENT_ID.fullmatch(entry_id)
    query = text(f"{UNATTACHED} AND d.id = :id" if matched else f"{ATTACHED} AND f.file_id = :id")
    with read_damaged_text(connection):
        asked = {"store": store, "id": int(matched[1]) if matched else entry_id}
        return connection.execute(query, asked).mappings().first()


def _find_place(connection: Connection, store: int, name: str, entry_id: str) -> tuple[int, int]:
    """Return by what an entry is ordered, also one that was taken out: its time, and its place within that second.

    Raises:
        NotFound: The store has none of that id, and had none within the last hour.
    """
    row = select_entry(connection, store, entry_id)
    if row is not None:
        return row["created_at"], row["place"]
    return require_departure(connection, name_listing(store), name, entry_id)


def name_listing(store: int) -> str:
    """Return what the list of a store's files is called among departures."""
    return f"vector_store_files/{store}"
