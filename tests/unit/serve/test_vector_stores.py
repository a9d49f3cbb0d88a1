"""A store is made in the language of the configuration; stores are listed by pages, also after one that was deleted."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from core.errors import NotFound
from core.layout import DataDir
from retrieval.database import open_database, write_transaction
from retrieval.store import find_store
from retrieval.vectors import EmbedderIdentity
from serve.vector_stores import (
    STATUSES,
    Holdings,
    create_vector_store,
    delete_vector_store,
    find_vector_store,
    list_vector_stores,
    read_holdings,
)
from serve.windows import Window, cut_window


def test_a_store_is_made_in_the_language_that_it_is_given(tmp_path: Path) -> None:
    engine = open_database(DataDir(tmp_path).database)
    values: dict[str, Any] = {"title": "a", "description": None, "metadata": {}, "expires_after_days": None}
    for language, kept in ((None, "english"), ("german", "german")):
        made = create_vector_store(engine, EmbedderIdentity("hash", 4, "abc"), "me", {**values, "language": language})
        assert find_store(engine, made.id).language == kept


def test_a_store_is_found_without_a_look_at_what_it_holds(tmp_path: Path) -> None:
    engine = open_database(DataDir(tmp_path).database)
    made = create_vector_store(engine, EmbedderIdentity("hash", 4, "abc"), "me", {"title": "a"})
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement))
    assert find_vector_store(engine, made.id, "me") == made
    assert not [one for one in statements if "documents" in one or "vector_store_files" in one]
    assert read_holdings(engine, made) == Holdings(dict.fromkeys(STATUSES, 0), 0)


def test_stores_are_listed_by_pages_also_after_one_that_was_deleted(tmp_path: Path) -> None:
    engine = open_database(DataDir(tmp_path).database)
    identity = EmbedderIdentity("hash", 4, "abc")
    for n in range(6):
        create_vector_store(engine, identity, "me" if n % 3 else "other", {"title": str(n)})
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE stores SET created_at = 1000 + id / 3"))
    for is_rising in (True, False):
        whole, _ = list_vector_stores(engine, "me", Window(None, None, 100, is_rising))
        ids = [store.id for store in whole]
        assert len(ids) == 4
        for after, before in itertools.product([None, *ids], repeat=2):
            window = Window(after, before, 2, is_rising)
            page, has_more = list_vector_stores(engine, "me", window)
            assert ([store.id for store in page], has_more) == cut_window(ids, window)
    delete_vector_store(engine, ids[1], "me")
    page, has_more = list_vector_stores(engine, "me", Window(ids[1], None, 2, False))
    assert ([store.id for store in page], has_more) == (ids[2:], False)
    with pytest.raises(NotFound, match="is not in this list"):
        list_vector_stores(engine, "other", Window(ids[1], None, 2, False))
