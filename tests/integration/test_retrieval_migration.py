"""kill -9 at any step of a migration: the database opens as the old or the new one, with all that was in it (D8)."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from retrieval import database
from retrieval.database import find_damage, open_database, read_transaction, read_version, write_transaction
from retrieval.migrations import MIGRATIONS
from tests.fakes.warm_python import WarmPython

STEPS = sum(len(migration) for migration in MIGRATIONS[1:])
PLACES = [f"migration.step:{step}" for step in range(1, STEPS + 1)] + [
    f"{place}:{turn}" for place in ("migration.written", "migration.committed") for turn in range(1, len(MIGRATIONS))
]
QUICK_PLACES = [f"migration.step:{STEPS // 2}", "migration.written:1", "migration.committed:1"]
ROWS = 50


def make_first_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make and fill a database as the first released schema had it."""
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        engine = open_database(path)
    with write_transaction(engine) as connection:
        connection.execute(text("INSERT INTO stores VALUES (1, 'acme', 'mini', 1, 'x', 0, 0)"))
        connection.execute(
            text(
                "INSERT INTO documents (id, store_id, name, sha256, recipe, size_bytes, status, text, updated_at) "
                "VALUES (:id, 1, :name, 'x', '1', 1, 'completed', :words, 0)"
            ),
            [{"id": number, "name": f"{number}.md", "words": f"words {number}"} for number in range(1, ROWS + 1)],
        )
        connection.execute(
            text(
                "INSERT INTO chunks (store_id, document_id, ordinal, start_offset, end_offset, text, sha256, "
                "embeddings) VALUES (1, :id, 0, 0, 5, 'words', :hash, x'0000803f')"
            ),
            [{"id": number, "hash": f"hash {number}"} for number in range(1, ROWS + 1)],
        )
    engine.dispose()


def version_after(place: str) -> int:
    """The schema that a kill at a place leaves: a migration is there once it is committed."""
    name, _, turn = place.partition(":")
    if name != "migration.step":
        return int(turn) + (name == "migration.committed")
    ends = itertools.accumulate(len(migration) for migration in MIGRATIONS[1:])
    return 1 + next(number for number, end in enumerate(ends) if int(turn) <= end)


def read_schema(path: Path) -> list[tuple[str, str]]:
    """Every table and index as SQLite keeps its words."""
    engine = create_engine(f"sqlite:///{path}")
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")).all()
    engine.dispose()
    return [(row.name, row.sql) for row in rows]


def check_content(path: Path, version: int) -> None:
    """All rows are there, and the schema is of a known version."""
    assert find_damage(path) == []
    engine = create_engine(f"sqlite:///{path}")
    with read_transaction(engine) as connection:
        assert read_version(connection) == version
        rows = connection.execute(text("SELECT id, name, status, text FROM documents ORDER BY id")).all()
        chunks = connection.execute(text("SELECT document_id, sha256 FROM chunks ORDER BY document_id")).all()
    engine.dispose()
    wanted = range(1, ROWS + 1)
    assert [tuple(row) for row in rows] == [(n, f"{n}.md", "completed", f"words {n}") for n in wanted]
    assert [tuple(row) for row in chunks] == [(n, f"hash {n}") for n in wanted]


@pytest.mark.parametrize("place", PLACES if os.environ.get("LOAM_TEST_FULL") else QUICK_PLACES)
def test_a_killed_migration_leaves_the_old_or_the_new_schema(
    programs: WarmPython,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    record_property: Callable[[str, object], None],
) -> None:
    path = tmp_path / "loam.db"
    make_first_schema(path, monkeypatch)
    opening = programs.start("tests.fakes.open_command", str(path), LOAM_TEST_BUILD="1", LOAM_FAILPOINT=place)
    assert opening.wait() == -signal.SIGKILL
    engine = create_engine(f"sqlite:///{path}")
    with read_transaction(engine) as connection:
        version = read_version(connection)
    engine.dispose()
    assert version == version_after(place)
    check_content(path, version)
    open_database(path).dispose()
    check_content(path, len(MIGRATIONS))
    open_database(tmp_path / "new.db").dispose()
    assert read_schema(path) == read_schema(tmp_path / "new.db")
    record_property("kills_of_a_migration", 1)
