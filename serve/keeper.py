"""The keeper: a tiny parent for vLLM that takes it down when the gateway is gone, however it went.

Run as a script by serve/engine.py. Starts the given command in a process group of its own, prints its process id, and
then waits for one of two things. The command ends: the rest of its group is killed and its exit code is passed on.
Standard input ends, which happens when the gateway dies (kill -9 included): the whole group is killed. SIGTERM is
passed on. Standard library only, so that it starts in a moment. Does not know what it runs.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType


def kill_group(group: int) -> None:
    """Kill every process of a group; one that is gone already is what was wanted."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_at_end_of_input(group: int) -> None:
    """Wait until standard input is closed by whoever holds its other end, then kill the group."""
    while os.read(0, 4096):  # not sys.stdin: its lock would abort the interpreter's exit while this thread waits
        continue
    kill_group(group)


def main(command: list[str]) -> int:
    """Run a command and return its exit code, 128 + the signal's number where a signal ended it.

    Args:
        command: Program and arguments.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    threading.Thread(target=kill_at_end_of_input, args=(child.pid,), daemon=True).start()
    code = child.wait()
    kill_group(child.pid)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
