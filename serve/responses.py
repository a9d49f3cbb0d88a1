"""Stored responses: what /v1/responses answered, to be read again and gone on from.

A response holds its own input and output and the id of the one before it; a conversation is read by going back along
these ids. What a search found is kept as ids of chunks, never as text, so that a deleted document is gone from here,
too. Every function takes the owner and asks SQL for it: another's response is as one that does not exist. Does not know
HTTP, nor how a response comes to be.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, text

from core.errors import NotFound
from retrieval.database import read_transaction, write_transaction
from retrieval.documents import note_erasure

KEPT_DAYS = 30
"""How long a response is kept, as at OpenAI."""
DAY_S = 86_400
MAX_LINKS = 1000
"""Responses of one conversation that are read; no model's context holds more."""
NO_STORE = 0
"""In place of a vector store's number, where traces of something else are to be removed."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is kept.

    Attributes:
        id: `resp_…`.
        body: OpenAI's object; the results of a search hold `chunk_id` in place of their text.
        items: Its input, each item as OpenAI's object.
    """

    id: str
    body: dict[str, Any]
    items: list[dict[str, Any]]


def save_response(engine: Engine, owner: str, response: StoredResponse) -> None:
    """Keep a response."""
    statement = text(
        "INSERT INTO responses (id, owner, previous_id, created_at, body, items) "
        "VALUES (:id, :owner, :previous, :now, :body, :items)"
    )
    row = {
        "id": response.id,
        "owner": owner,
        "previous": response.body["previous_response_id"],
        "now": int(time.time()),
        "body": json.dumps(response.body, ensure_ascii=False),
        "items": json.dumps(response.items, ensure_ascii=False),
    }
    with write_transaction(engine) as connection:
        connection.execute(statement, row)


def find_response(engine: Engine, response_id: str, owner: str, param: str = "response_id") -> StoredResponse:
    """Return an owner's response.

    Args:
        engine: The database.
        response_id: Which.
        owner: Who asks.
        param: The field that names it.

    Raises:
        NotFound: There is none, or it is another's.
    """
    with read_transaction(engine) as connection:
        return _to_stored(_select(connection, response_id, owner, param))


def read_conversation(engine: Engine, response_id: str, owner: str) -> list[dict[str, Any]]:
    """Return what was said up to a response, oldest first: the input items and output items of each.

    Raises:
        NotFound: There is no such response, or it is another's.
    """
    chain = text(
        "WITH RECURSIVE chain (id, previous_id, body, items, links) AS ("
        "SELECT id, previous_id, body, items, 1 FROM responses WHERE id = :id AND owner = :owner UNION ALL "
        "SELECT r.id, r.previous_id, r.body, r.items, c.links + 1 "
        "FROM responses r JOIN chain c ON r.id = c.previous_id WHERE r.owner = :owner AND c.links < :most) "
        "SELECT id, body, items FROM chain ORDER BY links DESC"
    )
    with read_transaction(engine) as connection:
        _select(connection, response_id, owner, "previous_response_id")
        rows = connection.execute(chain, {"id": response_id, "owner": owner, "most": MAX_LINKS}).mappings().all()
    stored = [_to_stored(row) for row in rows]
    return [item for response in stored for item in (*response.items, *response.body["output"])]


def delete_response(engine: Engine, response_id: str, owner: str) -> None:
    """Remove a response; those that went on from it go on from the one before it.

    Raises:
        NotFound: There is none, or it is another's.
    """
    with write_transaction(engine) as connection:
        row = _select(connection, response_id, owner, "response_id")
        relink = text("UPDATE responses SET previous_id = :before WHERE previous_id = :id AND owner = :owner")
        connection.execute(relink, {"before": row["previous_id"], "id": response_id, "owner": owner})
        connection.execute(text("DELETE FROM responses WHERE id = :id"), {"id": response_id})
        note_erasure(connection, NO_STORE)


def remove_old_responses(engine: Engine) -> None:
    """Remove the responses whose time is over, all of a day at once."""
    oldest = int(time.time()) - KEPT_DAYS * DAY_S
    with read_transaction(engine) as connection:
        looking = text("SELECT EXISTS (SELECT 1 FROM responses WHERE created_at < :time)")
        if not connection.execute(looking, {"time": oldest - DAY_S}).scalar_one():
            return
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM responses WHERE created_at < :time"), {"time": oldest})
        note_erasure(connection, NO_STORE)


def _select(connection: Connection, response_id: str, owner: str, param: str) -> RowMapping:
    query = text("SELECT * FROM responses WHERE id = :id AND owner = :owner")
    row = connection.execute(query, {"id": response_id, "owner": owner}).mappings().first()
    if row is None:
        raise NotFound(f"response {response_id!r}: there is none. It may have been deleted or not stored.", param=param)
    return row


def _to_stored(row: RowMapping) -> StoredResponse:
    return StoredResponse(row["id"], json.loads(row["body"]), json.loads(row["items"]))
