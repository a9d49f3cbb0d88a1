"""Pages of a list show everything once and nothing twice; a store is made in the language of the configuration."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from core.errors import NotFound
from core.layout import DataDir
from retrieval.database import open_database
from retrieval.store import EmbedderIdentity, find_store
from serve.vector_stores import (
    STATUSES,
    Holdings,
    Window,
    create_vector_store,
    cut_window,
    find_vector_store,
    read_holdings,
)

IDS = st.lists(st.text("abc", min_size=1, max_size=4), unique=True, max_size=20)


@given(IDS, st.integers(1, 7))
def test_paging_forward_shows_each_once(ids: list[str], limit: int) -> None:
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = cut_window(ids, Window(after, None, limit, True))
        assert len(page) <= limit
        seen += page
        after = page[-1] if page else None
    assert seen == ids


@given(IDS.filter(bool), st.integers(1, 7))
def test_paging_backward_shows_each_once(ids: list[str], limit: int) -> None:
    before, has_more = ids[-1], True
    seen = [before]
    while has_more:
        page, has_more = cut_window(ids, Window(None, before, limit, True))
        seen = page + seen
        before = page[0] if page else before
    assert seen == ids


def test_both_ends_together_and_an_unknown_one() -> None:
    assert cut_window(list("abcde"), Window("a", "e", 2, True)) == (["b", "c"], True)
    assert cut_window(list("abcde"), Window("a", "d", 2, True)) == (["b", "c"], False)
    for window in (Window("x", None, 2, True), Window(None, "x", 2, True)):
        with pytest.raises(NotFound, match="'x' is not in this list"):
            cut_window(list("abc"), window)


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
