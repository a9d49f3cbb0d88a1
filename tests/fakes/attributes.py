"""A person who sets a document's attributes, as the gateway lets them for an uploaded file."""

import json
from collections.abc import Mapping

from sqlalchemy import Engine, text

from retrieval.attributes import Value, check_attributes
from retrieval.database import write_transaction
from retrieval.documents import put_attributes
from retrieval.store import Store


def set_attributes(engine: Engine, store: Store, name: str, values: Mapping[str, Value]) -> None:
    """Set them in place of those that were set before."""
    find = text("SELECT id FROM documents WHERE store_id = :store_id AND name = :name")
    with write_transaction(engine) as connection:
        number = connection.execute(find, {"store_id": store.id, "name": name}).scalar_one()
        put_attributes(connection, number, json.dumps(check_attributes(values)))
