"""Where deleted things stood in their lists: clients that delete what they list go on from what is gone.

OpenAI's client asks for a page with the id of the last thing on the page before, which a loop that deletes has deleted
by then. Ids and times only, for an hour. Does not know what the things were.
"""

import time

from sqlalchemy import Connection, Engine, text

from core.errors import NotFound
from retrieval.database import read_transaction, write_transaction

KEPT_S = 3600


def note_departure(connection: Connection, listing: str, item_id: str, created_at: int, place: int = 0) -> None:
    """Note where something stood that is being deleted, within a transaction.

    Args:
        connection: In a transaction that writes.
        listing: Which list, whose: nobody else finds it there.
        item_id: Its id.
        created_at: The time by which it was listed, Unix seconds.
        place: By what it was listed within that second, where that is no id.
    """
    statement = text(
        "INSERT INTO departures (listing, id, created_at, place, departed_at) "
        "VALUES (:listing, :id, :at, :place, :now) "
        "ON CONFLICT (listing, id) DO UPDATE SET created_at = :at, place = :place, departed_at = :now"
    )
    values = {"listing": listing, "id": item_id, "at": created_at, "place": place, "now": int(time.time())}
    connection.execute(statement, values)


def find_departure(connection: Connection, listing: str, item_id: str) -> tuple[int, int] | None:
    """Return time and place of something that was deleted within the last hour; None where nothing was."""
    query = text(
        "SELECT created_at, place FROM departures WHERE listing = :listing AND id = :id AND departed_at > :limit"
    )
    values = {"listing": listing, "id": item_id, "limit": int(time.time()) - KEPT_S}
    row = connection.execute(query, values).first()
    return None if row is None else (row.created_at, row.place)


def require_departure(connection: Connection, listing: str, name: str, item_id: str) -> tuple[int, int]:
    """Return time and place of what a page is to go on from, and its list holds no more.

    Args:
        connection: In a transaction.
        listing: Which list, whose.
        name: Of the parameter that holds the id.
        item_id: The id.

    Raises:
        NotFound: Nothing of that id was deleted from the list within the last hour.
    """
    gone = find_departure(connection, listing, item_id)
    if gone is None:
        raise NotFound(f"{name}: {item_id!r} is not in this list.", param=name)
    return gone


def forget_departures(engine: Engine) -> None:
    """Remove what was noted longer ago than that."""
    limit = {"limit": int(time.time()) - KEPT_S}
    with read_transaction(engine) as connection:
        query = text("SELECT EXISTS (SELECT 1 FROM departures WHERE departed_at <= :limit)")
        if not connection.execute(query, limit).scalar_one():
            return
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM departures WHERE departed_at <= :limit"), limit)
