"""Leases: which process trains a job, told apart from any later process of the same number.

Reads /proc. Does not know jobs, nor what the process does.
"""

import os
import signal
from pathlib import Path

from serve.jobs import Lease
from serve.keeper import kill_group

PROC = Path("/proc")
ENDED_STATES = ("Z", "X")


def read_lease(pid: int) -> Lease | None:
    """Return the lease of a process; None where there is no such process any more."""
    found = _read_stat(pid)
    return None if found is None else Lease(pid, found[1], _read_boot_id())


def is_held(lease: Lease) -> bool:
    """Tell whether the process of a lease is still there."""
    found = _read_stat(lease.pid)
    is_same = found is not None and found[1] == lease.started_ticks and lease.boot_id == _read_boot_id()
    return is_same and found is not None and found[0] not in ENDED_STATES


def end_leftovers(run_id: str, lease: Lease | None) -> list[int]:
    """Kill what an earlier gateway has left of a run: the lease's process group, and any trainer that names the run.

    Args:
        run_id: The run; no other process has its id in its command line.
        lease: What the database says; None where it says nothing.

    Returns:
        The processes that were killed.
    """
    killed = find_trainers(run_id)
    if lease is not None and is_held(lease):
        kill_group(lease.pid)
    for pid in killed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return killed


def find_trainers(run_id: str) -> list[int]:
    """Return the processes of ours that train a run, their keepers included."""
    wanted = f"run_id={run_id}".encode()
    found = []
    for folder in PROC.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            is_ours = folder.stat().st_uid == os.getuid()
        except OSError:
            continue  # it ended meanwhile
        if is_ours and wanted in arguments and b"resume=auto" in arguments:
            found.append(int(folder.name))
    return found


def _read_stat(pid: int) -> tuple[str, int] | None:
    """Return a process's state and its start in ticks since boot. Source: proc(5), fields 3 and 22."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def _read_boot_id() -> str:
    return (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
