"""kill -9 at any step of a migration: the database opens as the old or the new one, with all that was in it (D8)."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from retrieval import database
from retrieval.database import find_damage, open_database, read_transaction, read_version, write_transaction
from retrieval.migrations import MIGRATIONS

REPO = Path(__file__).resolve().parents[2]
STEPS = sum(len(migration) for migration in MIGRATIONS[1:])
PLACES = [f"migration.step:{step}" for step in range(1, STEPS + 1)] + [
    f"{place}:{turn}" for place in ("migration.written", "migration.committed") for turn in range(1, len(MIGRATIONS))
]
QUICK_PLACES = [f"migration.step:{STEPS // 2}", "migration.written:1", "migration.committed:1"]
ROWS = 50
OPEN = "import sys; from pathlib import Path; from retrieval.database import open_database as o; o(Path(sys.argv[1]))"


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    record_property: Callable[[str, object], None],
) -> None:
    path = tmp_path / "loam.db"
    make_first_schema(path, monkeypatch)
    environment = {**os.environ, "LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": place}
    killed = subprocess.run([sys.executable, "-c", OPEN, str(path)], cwd=REPO, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    engine = create_engine(f"sqlite:///{path}")
    with read_transaction(engine) as connection:
        version = read_version(connection)
    engine.dispose()
    assert 1 <= version <= len(MIGRATIONS)
    check_content(path, version)
    open_database(path).dispose()
    check_content(path, len(MIGRATIONS))
    record_property("kills_of_a_migration", 1)
