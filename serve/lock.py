"""The data directory's lock: one gateway a data directory."""

from contextlib import AbstractContextManager
from pathlib import Path

from core.errors import Conflict
from core.layout import make_data_dir
from core.lock import hold_lock

LOCK_NAME = "gateway.lock"


def refuse_second(root: Path) -> None:
    """Refuse a data directory that a gateway holds now; makes nothing. Whoever goes on still has to lock it.

    Raises:
        Conflict: Another gateway holds the lock; its process id is named.
    """
    if (root / LOCK_NAME).is_file():
        with lock_data_dir(root):
            pass


def lock_data_dir(root: Path) -> AbstractContextManager[None]:
    """Hold the lock of a data directory until the block or the process ends.

    Args:
        root: The data directory; made, for its owner alone, if it is missing.

    Raises:
        Conflict: Another gateway holds the lock; its process id is named.
        StorageFull: The lock file cannot be written.
    """

    def explain(holder: str) -> Conflict:
        return Conflict(
            f"{root}: wanted this data directory for a gateway, found one running on it (process {holder}). "
            f"Stop it first (kill {holder}), or give another paths.data_dir."
        )

    make_data_dir(root)
    return hold_lock(root / LOCK_NAME, explain)
