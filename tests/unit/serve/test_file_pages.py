"""Pages of a store's files: the same as cut from the whole list, and as dear as the page, not as the list."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from core.errors import NotFound
from core.layout import DataDir
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.vectors import EmbedderIdentity
from serve.file_pages import select_page
from serve.vector_stores import ENTRIES, VectorStore, create_vector_store
from serve.windows import Window, cut_window

FIRST_S = 1_700_000_000


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(DataDir(tmp_path).database)


def make_store(engine: Engine) -> VectorStore:
    return create_vector_store(engine, EmbedderIdentity("hash", 4, "abc"), "me", {"title": "a"})


def add_attached(engine: Engine, store: VectorStore, rows: list[dict[str, Any]]) -> None:
    """Attach files whose documents are made, unless they wait or were cancelled."""
    if made := [row for row in rows if row["status"] in ("completed", "failed")]:
        add_documents(engine, store, made, is_attached=1)
    with write_transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO vector_store_files (store_id, file_id, document, status, batch_id, attributes, "
                "max_tokens, overlap_tokens, created_at) "
                "VALUES (:store, :name, :name, :status, :batch, '{}', 240, 32, :at)"
            ),
            [{"store": store.number, "batch": None, **row} for row in rows],
        )


def add_documents(engine: Engine, store: VectorStore, rows: list[dict[str, Any]], *, is_attached: int = 0) -> None:
    """Bring documents in, as the command line does, or as the worker does it for attached files."""
    with write_transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO documents (store_id, name, sha256, recipe, size_bytes, status, text, updated_at, "
                "is_attached) VALUES (:store, :name, '', '', 1, :status, '', :at, :is_attached)"
            ),
            [{"store": store.number, "is_attached": is_attached, **row} for row in rows],
        )


def test_a_page_is_what_the_whole_list_shows_there(engine: Engine) -> None:
    chance = random.Random(7)
    store, other = make_store(engine), make_store(engine)

    def draw(name: str, statuses: tuple[str, ...]) -> dict[str, Any]:
        return {"name": name, "status": chance.choice(statuses), "at": FIRST_S + chance.randrange(5)}

    attached = ("in_progress", "completed", "failed", "cancelled", "deleted")
    add_attached(engine, store, [{**draw(f"file-{n}", attached), "batch": chance.choice("ab")} for n in range(30)])
    add_documents(engine, store, [draw(f"d{n}", ("in_progress", "completed", "failed")) for n in range(20)])
    add_attached(engine, other, [draw("file-99", attached[:1])])
    with read_transaction(engine) as connection:
        rows = list(connection.execute(text(f"SELECT * FROM ({ENTRIES})"), {"store": store.number}).mappings())
        for _ in range(1500):
            status, batch = chance.choice((None, *attached[:4])), chance.choice((None, None, "a", "b"))
            whole = [row for row in rows if status in (None, row["status"]) and batch in (None, row["batch_id"])]
            is_rising = chance.random() < 0.5
            whole.sort(key=lambda row: (row["created_at"], row["place"]), reverse=not is_rising)
            ids = [row["id"] for row in whole]
            after, before = (chance.choice([None, *ids]) for _ in range(2))
            window = Window(after, before, chance.choice((1, 3, 100)), is_rising)
            page, has_more = select_page(connection, store.number, window, status=status, batch_id=batch)
            assert ([row["id"] for row in page], has_more) == cut_window(ids, window), (window, status, batch)
        for stranger in ("file-99", "doc-0", "doc-01", "doc-999", "nothing"):
            for window in (Window(stranger, None, 2, True), Window(None, stranger, 2, True)):
                with pytest.raises(NotFound, match=f"'{stranger}' is not in this list"):
                    select_page(connection, store.number, window)


def test_paging_goes_on_after_a_file_that_has_left_the_filter(engine: Engine) -> None:
    store = make_store(engine)
    names = [f"file-{n}" for n in range(5)]
    add_attached(engine, store, [{"name": name, "status": "in_progress", "at": FIRST_S} for name in names])
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE vector_store_files SET status = 'cancelled' WHERE file_id = 'file-1'"))
        page, has_more = select_page(connection, store.number, Window("file-1", None, 2, True), status="in_progress")
    assert ([row["id"] for row in page], has_more) == (["file-2", "file-3"], True)


@contextmanager
def count_steps(connection: Connection) -> Iterator[list[int]]:
    """Count the steps of SQLite's machine, a hundred at a time."""
    driver: Any = connection.connection.driver_connection
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    driver.set_progress_handler(count, 100)
    try:
        yield steps
    finally:
        driver.set_progress_handler(None, 0)


WINDOWS: Mapping[str, tuple[Window, dict[str, str]]] = {
    "first": (Window(None, None, 20, True), {}),
    "last": (Window(None, None, 20, False), {}),
    "after": (Window("file-20", None, 20, True), {}),
    "before": (Window(None, "file-20", 20, False), {}),
    "between": (Window("file-20", "file-45", 20, True), {}),
    "after a document": (Window("doc-1", None, 20, True), {}),
    "failed": (Window("file-20", None, 20, True), {"status": "failed"}),
    "cancelled": (Window("file-20", None, 20, False), {"status": "cancelled"}),
    "batch": (Window("file-20", None, 20, True), {"batch_id": "a"}),
    "failed of a batch": (Window("file-20", None, 20, True), {"status": "failed", "batch_id": "a"}),
}


def test_a_page_costs_no_more_in_a_long_list(engine: Engine) -> None:
    costs: dict[str, list[int]] = {name: [] for name in WINDOWS}
    for files in (60, 3000):  # all of the same second, which is the worst
        store = make_store(engine)
        rows = [{"name": f"file-{n}", "status": "completed", "at": FIRST_S} for n in range(files)]
        for n, row in enumerate(rows[:60]):
            row |= {"status": "failed" if n % 10 == 5 else "completed", "batch": "a"}
        add_attached(engine, store, rows)
        add_documents(engine, store, [{"name": "d", "status": "completed", "at": FIRST_S}])
        with read_transaction(engine) as connection:
            query = text("SELECT 'doc-' || id FROM documents WHERE store_id = :id AND is_attached = 0")
            document = connection.execute(query, {"id": store.number}).scalar_one()
            for name, (window, filters) in WINDOWS.items():
                after = document if window.after == "doc-1" else window.after
                asked = Window(after, window.before, window.limit, window.is_rising)
                with count_steps(connection) as steps:
                    page, _ = select_page(connection, store.number, asked, **filters)
                assert page or name == "cancelled"
                costs[name].append(steps[0])
    assert {name: cost for name, cost in costs.items() if cost[1] > 2 * cost[0] + 2} == {}
