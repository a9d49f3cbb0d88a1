"""Deleted means gone: what was deleted is taken out of every file that was derived from it, and out of the log.

The database overwrites deleted rows (secure_delete) and is written anew after documents were deleted, because copies of
rows can stay where SQLite moved them from; its write-ahead log is emptied. Snapshots older than a store's last deletion
are removed, and so is what a killed process left half-written: a snapshot is written under a lock that dies with its
process, so that whoever holds the lock knows that nobody is writing. Runs after each deletion and at each start, so
that a kill in between delays it to the next start. Does not know what a snapshot holds.
"""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from core.errors import Conflict, StorageFull, describe_os_error
from core.failpoints import reach
from core.layout import DataDir
from retrieval.database import read_transaction, rewrite_database, truncate_log, write_transaction
from retrieval.store import Store

logger = logging.getLogger(__name__)


@contextmanager
def hold_snapshots(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the right to write a store's snapshots; it ends with the block or the process.

    Args:
        folder: Where they lie.
        wait: Whether to wait for another process that has it.

    Yields:
        Whether it is held.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.snapshots.lock").open("w")
    except OSError as error:
        raise describe_os_error(error, f"write into {folder}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def erase_deleted(engine: Engine, data: DataDir) -> None:
    """Remove what still holds something deleted: old and half-written snapshots, the database's stale pages and log."""
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT id, erased_generation FROM stores")).all()
        last = connection.execute(text("SELECT MAX(id) FROM erasures")).scalar()
    erased = {str(row.id): int(row.erased_generation) for row in rows}
    for folder in sorted(data.indexes.iterdir()) if data.indexes.is_dir() else []:
        if folder.name.isdigit() and folder.is_dir():
            remove_snapshots(folder, erased.get(folder.name))
    reach("erasure.pruned")
    if last is not None:
        try:
            rewrite_database(engine)
            reach("erasure.rewritten")
            with write_transaction(engine) as connection:
                connection.execute(text("DELETE FROM erasures WHERE id <= :last"), {"last": last})
        except (StorageFull, Conflict) as error:  # the deletion itself is done
            logger.warning("what was deleted may be readable in the database's file until the next start: %s", error)
    reach("erasure.forgotten")
    truncate_log(engine)
    reach("erasure.truncated")


def read_erased_generation(engine: Engine, store: Store) -> int | None:
    """Return the generation of a store's last deletion, None where the store itself is gone."""
    query = text("SELECT erased_generation FROM stores WHERE id = :id")
    with read_transaction(engine) as connection:
        generation = connection.execute(query, {"id": store.id}).scalar()
    return None if generation is None else int(generation)


def remove_snapshots(folder: Path, least_generation: int | None) -> None:
    """Remove a store's snapshots below a generation, and half-written ones; all of them where it is None.

    While another process is writing one, nothing is removed: that process does it when it is done.
    """
    with hold_snapshots(folder, wait=False) as is_held:
        if not is_held:
            return
        if least_generation is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for other in folder.iterdir():
            is_outdated = other.name.isdigit() and int(other.name) < least_generation
            if is_outdated or other.name.startswith("."):
                shutil.rmtree(other, ignore_errors=True)  # a reader that is just opening it builds from the database
