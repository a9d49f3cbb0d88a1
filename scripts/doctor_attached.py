"""What doctor checks of the files that the API attached: each row against its seal. Does not know what a file holds."""

from collections.abc import Iterator

from sqlalchemy import Engine, text

from retrieval.database import read_transaction, write_transaction
from scripts.finding import Finding
from serve.attachment_seals import DAMAGED, is_file_whole, seal_files, select_files

ATTACHED = "attached"
REMEDY = "Restore a backup, or take the file out of its vector store and attach it again."


def check_attached(engine: Engine, *, repair: bool) -> Iterator[Finding]:
    """Check the row of each attached file against its seal, and seal those of an earlier Loam.

    Args:
        engine: The database.
        repair: Whether to seal what has no seal; files that the worker is on are sealed when it is done.
    """
    with read_transaction(engine) as connection:
        numbers = connection.execute(text("SELECT number FROM vector_store_files ORDER BY number")).scalars().all()
        rows = select_files(connection, numbers)
    for row in rows:
        if not is_file_whole(row):
            yield Finding(ATTACHED, str(row["file_id"]), DAMAGED, REMEDY)
    unsealed = [int(row["number"]) for row in rows if row["seal"] is None and row["status"] != "in_progress"]
    if not unsealed:
        return
    if repair:
        with write_transaction(engine) as connection:
            seal_files(connection, unsealed)
    fault = f"{len(unsealed)} attached files of an earlier version have no seal: damage to their rows would not be seen"
    yield Finding(ATTACHED, "seals", fault, "repair=true seals them as they are", repair)
