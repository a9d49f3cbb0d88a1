"""The keeper: a tiny parent for vLLM and for trainers that takes them down when the gateway is gone, however it went.

Run as a script by serve/kept_process.py. Starts the given command in a process group of its own, prints its process
id, and then waits for one of two things. The command ends: the rest of its group is killed and its exit code is passed
on. Standard input ends, which happens when the gateway dies (kill -9 included): the whole group is killed and its
folder removed. The keeper itself is killed: the kernel kills the command. SIGTERM is passed on. Standard library only,
so that it starts in a moment. Does not know what it runs.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

PR_SET_PDEATHSIG = 1


def kill_group(group: int) -> None:
    """Kill every process of a group; one that is gone already is what was wanted."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_at_end_of_input(group: int, is_orphan: threading.Event) -> None:
    """Wait until standard input is closed by whoever holds its other end, then kill the group."""
    while os.read(0, 4096):  # not sys.stdin: its lock would abort the interpreter's exit while this thread waits
        continue
    is_orphan.set()
    kill_group(group)


def die_with_keeper() -> None:
    """Have the kernel kill this process when the keeper is killed itself. Source: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(scratch: str, command: list[str]) -> int:
    """Run a command and return its exit code, 128 + the signal's number where a signal ended it.

    Args:
        scratch: The command's private folder; removed only when the gateway is gone.
        command: Program and arguments.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=die_with_keeper,  # noqa: PLW1509  (no thread has started yet)
    )
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    is_orphan = threading.Event()
    threading.Thread(target=kill_at_end_of_input, args=(child.pid, is_orphan), daemon=True).start()
    code = child.wait()
    kill_group(child.pid)
    if is_orphan.is_set():
        shutil.rmtree(scratch, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
