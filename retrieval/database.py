"""The SQLite database: opening, transactions, migrations. The only file, beside the migrations, that knows SQLite.

Write-ahead log and synchronous=FULL: what a transaction has committed survives kill -9 and power loss, and readers
never wait for a writer. Several processes may use the file at once; SQLite's locks arbitrate (docs/decisions/0011).
Does not know what the tables mean; store.py does.
"""

import functools
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from core.errors import Conflict, ContractError, InputError, LoamError, StorageFull
from core.failpoints import reach
from core.layout import DataDir, make_data_dir
from retrieval.migrations import MIGRATIONS

BUSY_TIMEOUT_S = 30
"""How long a writer waits for another process's transaction, which takes milliseconds."""

SWITCH_PAUSE_S = 0.01
"""Between two attempts to switch a new database to its log while another process is doing it."""


def open_database(path: Path) -> Engine:
    """Open the database, making or migrating it as needed.

    Args:
        path: Where it lies; its folder is made.

    Returns:
        An engine whose connections have every safety switch set.

    Raises:
        ContractError: The file is no database, is damaged, was written by a newer Loam, or is gone while uploads of
            its are there.
        StorageFull: There is no space to make or migrate it.
    """
    loss = find_loss(path)
    if loss is not None:
        raise ContractError(loss)
    make_data_dir(path.parent)
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_TIMEOUT_S},
        hide_parameters=True,  # of a statement that fails: they are documents' words, and errors are logged
    )
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    _switch_on_log(engine)
    _migrate(engine, path)
    truncate_log(engine)
    return engine


def find_loss(path: Path) -> str | None:
    """Return what tells that a database was lost, None where nothing does.

    In a new one no upload would have its row, and the gateway would remove them all as what a killed process left.
    """
    files = DataDir(path.parent).files
    is_there = any(one.is_file() and one.stat().st_size for one in (path, path.with_name(f"{path.name}-wal")))
    if is_there or not any(files.glob("file-*")):
        return None
    found = "an empty one" if path.is_file() else "none"
    return (
        f"{path}: wanted the database of the uploads in {files}, found {found}. Restore it from a backup, or move that "
        "folder away."
    )


def truncate_log(engine: Engine) -> bool:
    """Write the log into the database and empty it, so that nothing deleted stays readable in it.

    Returns:
        Whether it was emptied; not while another process is reading or writing: the last one to close empties it.
    """
    with _raw_connection(engine) as connection:
        is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy


def rewrite_database(engine: Engine) -> None:
    """Write the database anew without anything that is not a row.

    secure_delete overwrites what is deleted where it stands, not the copies that SQLite left when it moved a row from a
    page to its neighbour. Takes time in proportion to the database, and as much space once more while it lasts.
    """
    with _raw_connection(engine) as connection:
        connection.execute("VACUUM")


class ChangeCounter:
    """Tells cheaply whether any process has changed the database. Thread-safe.

    Source: https://www.sqlite.org/pragma.html#pragma_data_version
    """

    def __init__(self, path: Path) -> None:
        """Open a connection that only counts."""
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=BUSY_TIMEOUT_S)

    def read(self) -> int:
        """Return a number that differs from the last one if anything was committed since."""
        with self._lock:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


@contextmanager
def _raw_connection(engine: Engine) -> Iterator[sqlite3.Connection]:
    """Yield a connection outside any transaction, for what SQLite refuses within one."""
    with explain_database_errors(engine):
        pooled = engine.raw_connection()
        try:
            assert isinstance(pooled.driver_connection, sqlite3.Connection)  # noqa: S101
            yield pooled.driver_connection
        finally:
            pooled.close()


def _prepare_connection(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN below; sqlite3 would begin late and only for writes
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_on_log(engine: Engine) -> None:
    """Make the database use a write-ahead log, which it then does for good.

    Of several that open a new database at once one switches; SQLite refuses the others without waiting its timeout.
    """
    ends = time.monotonic() + BUSY_TIMEOUT_S
    with _raw_connection(engine) as connection:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
            time.sleep(SWITCH_PAUSE_S)


def _begin(connection: Connection) -> None:
    """Open a transaction; one that will write takes the lock at once, so that it cannot fail half-way."""
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that sees one state of the database throughout."""
    with explain_database_errors(engine), engine.begin() as connection:
        yield connection


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection whose changes are committed to disk together, or not at all."""
    with explain_database_errors(engine), engine.execution_options(is_write=True).begin() as connection:
        yield connection


@contextmanager
def read_damaged_text(connection: Connection) -> Iterator[None]:
    """Read text that is no UTF-8 (any more), too, with signs in place of what cannot be read; else SQLite refuses.

    For rows that are held against a seal, which such text never fits: whoever reads can then name the row.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101
    driver.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
    try:
        yield
    finally:
        driver.text_factory = str


@contextmanager
def explain_database_errors(engine: Engine) -> Iterator[None]:
    """Turn the database's errors into ours, each with what to do.

    Raises:
        StorageFull: The disk is full; the transaction was rolled back.
        Conflict: Another process held the database for too long.
        ContractError: The file is damaged.
        InputError: The file cannot be written.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:  # the latter while a connection is prepared
        cause = error.orig if isinstance(error, DBAPIError) else error
        described = describe_database_error(cause, str(engine.url.database))
        if described is None:
            raise
        raise described from error


def describe_database_error(error: BaseException | None, path: str) -> LoamError | None:
    """Return our error for one of SQLite's, or None for one that is a bug of ours.

    Source: https://www.sqlite.org/rescode.html; the low byte is the primary code.
    """
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    found = str(error).partition(" with text ")[0]  # what follows are the row's own words
    if primary == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        return StorageFull(f"{path}: could not write ({found}). Free some disk space and run the same command again.")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Conflict(
            f"{path}: another process has been writing for {BUSY_TIMEOUT_S} s ({found}). Try again.", retry_after_s=5
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or found.startswith("Could not decode to UTF-8"):
        return ContractError(f"{path}: wanted an SQLite database, found damage ({found}). Restore it from a backup.")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return InputError(f"{path}: the database cannot be used ({found}). Check its permissions and the disk.")
    return None


def find_damage(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a database: pages, indexes that differ from their tables, foreign keys.

    Reads only; the database is neither made nor migrated.

    Raises:
        Conflict: Another process held the database for too long.
        InputError: The file cannot be read.
    """
    connection = None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        faults = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        lost = connection.execute("PRAGMA foreign_key_check").fetchall()
        return faults + [
            f"table {table}: row {number} belongs to no row of {parent}" for table, number, parent, _ in lost
        ]
    except sqlite3.Error as error:
        described = describe_database_error(error, str(path))
        if described is None or isinstance(described, ContractError):
            return [str(error)]
        raise described from error
    finally:
        if connection is not None:
            connection.close()


def copy_database(engine: Engine, target: Path) -> None:
    """Copy one state of a database that may be in use into one new file.

    Args:
        engine: The database.
        target: Where the copy goes; it needs no other file beside it.

    Raises:
        StorageFull: There is no space for it.
        ContractError: The database is damaged.
        Conflict: Another process held the database for too long.
    """
    ends = time.monotonic() + BUSY_TIMEOUT_S
    copy = None

    def check_time(status: int, _left: int, _pages: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > ends:
            raise Conflict(  # sqlite3 itself would go on trying for ever
                f"{engine.url.database}: another process has held the database for {BUSY_TIMEOUT_S} s. Try again.",
                retry_after_s=5,
            )

    with explain_database_errors(engine):
        connection = engine.raw_connection()
        try:
            copy = sqlite3.connect(target)
            source = connection.driver_connection
            if not isinstance(source, sqlite3.Connection):
                raise TypeError(f"wanted an SQLite connection, found {type(source).__name__}")
            source.backup(copy, progress=check_time)  # all pages in one step: one state, and writers go on meanwhile
            copy.execute("PRAGMA journal_mode = DELETE")  # the log's content is in the file
        finally:
            if copy is not None:
                copy.close()
            connection.close()


def read_version(connection: Connection) -> int:
    """Return the schema's version: how many migrations the database has had."""
    if not inspect(connection).has_table("schema_versions"):
        return 0
    return int(connection.execute(text("SELECT COALESCE(MAX(version), 0) FROM schema_versions")).scalar_one())


def _migrate(engine: Engine, path: Path) -> None:
    """Apply the migrations that the database has not had, each in a transaction of its own."""
    with read_transaction(engine) as connection:
        version = read_version(connection)
    while version < len(MIGRATIONS):
        with write_transaction(engine) as connection:
            version = read_version(connection)  # again, under the lock: another process may have been quicker
            if version < len(MIGRATIONS):
                _apply_migration(connection, version)
                version += 1
                reach("migration.written")
        reach("migration.committed")
    if version > len(MIGRATIONS):
        raise ContractError(
            f"{path}: wanted schema version {len(MIGRATIONS)} or older, found {version}. "
            "It was written by a newer Loam: use that one, or another paths.data_dir."
        )


def _apply_migration(connection: Connection, version: int) -> None:
    """Bring the schema from a version to the next."""
    if version == 0:
        connection.execute(
            text("CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)")
        )
    for statement in MIGRATIONS[version]:
        connection.execute(text(statement))
        reach("migration.step")
    connection.execute(
        text("INSERT INTO schema_versions VALUES (:version, :now)"), {"version": version + 1, "now": int(time.time())}
    )
