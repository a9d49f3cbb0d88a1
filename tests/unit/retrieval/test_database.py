"""The database is opened safely: durable settings, ordered migrations, and errors that say what to do."""

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from core.errors import Conflict, ContractError, InputError, StorageFull
from core.layout import DataDir
from retrieval import database
from retrieval.database import (
    copy_database,
    open_database,
    read_transaction,
    read_version,
    write_transaction,
)
from retrieval.migrations import MIGRATIONS
from retrieval.uploads import remove_leftovers, save_upload


def test_commits_are_durable_readers_do_not_wait_and_others_do_not_read(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "new" / "loam.db")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with read_transaction(engine) as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "loam.db")
    insert = text(
        "INSERT INTO stores (name, embedder, dimension, embedder_sha256, created_at) VALUES (:n, '', 1, '', 0)"
    )

    def fail_half_way() -> None:
        with write_transaction(engine) as connection:
            connection.execute(insert, {"n": "a"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    with read_transaction(engine) as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM stores")).scalar() == 0


def test_a_reader_sees_one_state_while_another_writes(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "loam.db")
    insert = text(
        "INSERT INTO stores (name, embedder, dimension, embedder_sha256, created_at) VALUES ('a', '', 1, '', 0)"
    )
    with read_transaction(engine) as reader:
        assert reader.execute(text("SELECT COUNT(*) FROM stores")).scalar() == 0
        with write_transaction(engine) as writer:
            writer.execute(insert)
        assert reader.execute(text("SELECT COUNT(*) FROM stores")).scalar() == 0
    with read_transaction(engine) as reader:
        assert reader.execute(text("SELECT COUNT(*) FROM stores")).scalar() == 1


def test_migrations_are_applied_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loam.db"
    open_database(path).dispose()
    later = (*MIGRATIONS, ("CREATE TABLE later (id INTEGER)", "INSERT INTO later VALUES (1)"))
    monkeypatch.setattr(database, "MIGRATIONS", later)
    for _ in range(2):
        engine = open_database(path)
        with read_transaction(engine) as connection:
            assert read_version(connection) == len(later)
            assert connection.execute(text("SELECT COUNT(*) FROM later")).scalar() == 1
        engine.dispose()


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loam.db"
    open_database(path).dispose()
    with monkeypatch.context() as patch:
        patch.setattr(
            database, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE later (id INTEGER)", "INSERT INTO none_such"))
        )
        with pytest.raises(Exception, match=r"none_such|incomplete input"):
            open_database(path)
    engine = open_database(path)
    with read_transaction(engine) as connection:
        assert read_version(connection) == len(MIGRATIONS)
        assert connection.execute(text("SELECT COUNT(*) FROM sqlite_master WHERE name = 'later'")).scalar() == 0


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loam.db"
    engine = open_database(path)
    with write_transaction(engine) as connection:
        connection.execute(text("INSERT INTO schema_versions VALUES (99, 0)"))
    with pytest.raises(ContractError, match=r"found 99.*newer Loam"):
        open_database(path)


@pytest.mark.parametrize(
    "content", [b"this is no database at all " * 100, b"SQLite format 3\0" + bytes(range(256)) * 40]
)
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "loam.db"
    path.write_bytes(content)
    with pytest.raises(ContractError, match="found damage"):
        open_database(path)
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loam.db").mkdir()
    with pytest.raises(InputError, match="cannot be used"):
        open_database(tmp_path / "loam.db")


def test_a_full_disk_is_told_and_leaves_the_old_content(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "loam.db")

    def write_too_much() -> None:
        with write_transaction(engine) as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.execute(text("CREATE TABLE big AS SELECT randomblob(1000000) AS data"))

    with pytest.raises(StorageFull, match="Free some disk space"):
        write_too_much()
    with read_transaction(engine) as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM sqlite_master WHERE name = 'big'")).scalar() == 0


def test_a_writer_that_never_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "loam.db"
    engine = open_database(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Conflict, match="another process"), write_transaction(engine):
        raise AssertionError("the transaction must not begin")
    other.close()
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM stores"))


def test_threads_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def open_one(_: int) -> int:
        barrier.wait()
        engine = open_database(tmp_path / "loam.db")
        with read_transaction(engine) as connection:
            return read_version(connection)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(open_one, range(6))) == [len(MIGRATIONS)] * 6


def test_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from retrieval.database import open_database as o; o(Path(sys.argv[1]))"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "loam.db")]) for _ in range(4)]
    assert [child.wait(timeout=110) for child in children] == [0, 0, 0, 0]


def test_documents_of_the_first_schema_keep_their_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        engine = open_database(tmp_path / "loam.db")
        insert = text(
            "INSERT INTO documents (store_id, name, sha256, recipe, size_bytes, status, text, updated_at) "
            "VALUES (1, :name, 'x', '1', 1, :status, 'words', 0)"
        )
        with write_transaction(engine) as connection:
            connection.execute(text("INSERT INTO stores VALUES (1, 'acme', 'mini', 1, 'x', 0, 0)"))
            connection.execute(insert, [{"name": status, "status": status} for status in ("completed", "failed")])
        engine.dispose()
    with read_transaction(open_database(tmp_path / "loam.db")) as connection:
        rows = connection.execute(text("SELECT name, status, modified_ns, inode FROM documents ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [("completed", "completed", 0, 0), ("failed", "failed", 0, 0)]


def test_documents_of_attached_files_are_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = next(number for number, steps in enumerate(MIGRATIONS) if any("is_attached" in step for step in steps))
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:before])
        engine = open_database(tmp_path / "loam.db")
        with write_transaction(engine) as connection:
            for statement in (
                """INSERT INTO stores (id, name, embedder, dimension, embedder_sha256, created_at)
                VALUES (1, 'acme', 'mini', 1, 'x', 0)""",
                """INSERT INTO documents (store_id, name, sha256, recipe, size_bytes, status, text, updated_at)
                VALUES (1, 'a.md', 'x', '1', 1, 'completed', '', 0), (1, 'b.md', 'x', '1', 1, 'completed', '', 0)""",
                """INSERT INTO vector_store_files (store_id, file_id, document, status, attributes, max_tokens,
                overlap_tokens, created_at) VALUES (1, 'file-1', 'a.md', 'completed', '{}', 240, 32, 0)""",
            ):
                connection.execute(text(statement))
        engine.dispose()
    with read_transaction(open_database(tmp_path / "loam.db")) as connection:
        rows = connection.execute(text("SELECT name, is_attached FROM documents ORDER BY name")).all()
    assert [tuple(row) for row in rows] == [("a.md", 1), ("b.md", 0)]


@pytest.mark.timeout(30)
def test_a_copy_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loam.db"
    open_database(path).dispose()
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.3)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.1})
    with pytest.raises(Conflict, match="has held the database"):
        copy_database(engine, tmp_path / "copy.db")
    holder.close()
    copy_database(engine, tmp_path / "copy.db")
    engine.dispose()
    assert database.find_damage(tmp_path / "copy.db") == []


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_lost_database_is_not_made_anew_beside_its_uploads(tmp_path: Path, is_empty: bool) -> None:
    data = DataDir(tmp_path)
    open_database(data.database).dispose()  # nothing was uploaded yet
    for left in tmp_path.glob("loam.db*"):
        left.unlink()
    engine = open_database(data.database)
    save_upload(engine, data, [b"words"], owner="a", name="a.md", purpose="assistants", max_bytes=10)
    engine.dispose()
    for left in tmp_path.glob("loam.db*"):
        left.unlink()
    if is_empty:
        data.database.touch()
    with pytest.raises(ContractError, match=f"found {'an empty one' if is_empty else 'none'}. Restore it"):
        remove_leftovers(open_database(data.database), data)
    (upload,) = data.files.iterdir()
    assert upload.read_bytes() == b"words"


def test_a_statement_that_fails_does_not_tell_its_values(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "loam.db")
    insert = text("INSERT INTO erasures (store_id) VALUES (:words), (NULL)")
    with pytest.raises(IntegrityError) as caught, write_transaction(engine) as connection:
        connection.execute(insert, {"words": "a secret"})
    assert "secret" not in str(caught.value)
