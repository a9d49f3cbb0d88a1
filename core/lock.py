"""Locks between processes: an flock on a file, so that the kernel frees it with its holder, kill -9 included.

The file's content names the holder for people; it is never read as proof that somebody holds the lock. Does not know
what a lock protects.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Conflict, describe_os_error

NAMED_WITHIN_S = 0.5
"""How long to wait for a holder to write its name: it does so right after it has taken the lock."""


@contextmanager
def hold_lock(path: Path, explain: Callable[[str], Conflict]) -> Iterator[None]:
    """Hold a lock until the block or the process ends; children do not inherit it.

    Args:
        path: The lock's file; made with its folders if it is missing, and readable by this user only.
        explain: Makes the error from the holder's process id, or from `unknown` where it has written none.

    Raises:
        Conflict: Another process, or another thread of this one, holds the lock.
        StorageFull: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise describe_os_error(error, f"open {path}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise explain(_read_holder(descriptor)) from error
        _write_holder(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _write_holder(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise describe_os_error(error, f"write {path}") from error


def _read_holder(descriptor: int) -> str:
    """Return the holder's process id; what a dead one left there is passed over for a moment."""
    ends = time.monotonic() + NAMED_WITHIN_S
    while True:
        holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip()
        is_alive = holder.isdecimal() and Path("/proc", holder).is_dir()
        if is_alive or time.monotonic() > ends:  # in another container it has a number that is not known here
            return holder or "unknown"
        time.sleep(0.01)
