"""The data directory's lock: one gateway a data directory.

An flock on `data/gateway.lock`, so that the kernel frees it with the process that holds it, kill -9 included. The
file's content names the holder for people; it is never read as proof that somebody holds the lock.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Conflict, describe_os_error

LOCK_NAME = "gateway.lock"


@contextmanager
def lock_data_dir(root: Path) -> Iterator[None]:
    """Hold the lock of a data directory.

    Args:
        root: The data directory; made if it is missing.

    Raises:
        Conflict: Another gateway holds the lock; its process id is named.
        StorageFull: The lock file cannot be written.
    """
    path = root / LOCK_NAME
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise describe_os_error(error, f"open {path}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"{root}: wanted this data directory for a gateway, found one running on it (process {holder}). "
                f"Stop it first (kill {holder}), or give another paths.data_dir."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
