"""The keeper: passes on the end of its command, and ends it with everything when its own input ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve import keeper

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""

POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
open(sys.argv[1], "w").write("1")
time.sleep(60)
"""


def start_keeper(scratch: Path, *command: str) -> tuple[subprocess.Popen[bytes], int]:
    process = subprocess.Popen(
        [sys.executable, "-P", keeper.__file__, str(scratch), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    group = int(process.stdout.readline())
    process.stdout.close()
    return process, group


def wait_for_file(path: Path) -> int:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_passed_on_and_the_rest_of_the_group_dies(tmp_path: Path, code: int) -> None:
    (tmp_path / "scratch").mkdir()
    process, _group = start_keeper(
        tmp_path / "scratch", sys.executable, "-c", FAMILY, str(tmp_path / "pid"), "0.2", str(code)
    )
    assert process.stdin is not None
    assert process.wait(60) == code
    process.stdin.close()
    wait_for_end(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "scratch").exists()  # the next start needs it


def test_the_end_of_its_input_kills_the_whole_group(tmp_path: Path) -> None:
    process, group = start_keeper(tmp_path / "scratch", sys.executable, "-c", FAMILY, str(tmp_path / "pid"), "60", "0")
    (tmp_path / "scratch").mkdir()
    grandchild = wait_for_file(tmp_path / "pid")
    assert is_alive(group)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGKILL
    wait_for_end(group)
    wait_for_end(grandchild)
    assert not (tmp_path / "scratch").exists()


def test_sigterm_is_passed_on(tmp_path: Path) -> None:
    process, group = start_keeper(tmp_path / "scratch", sys.executable, "-c", POLITE, str(tmp_path / "ready"))
    wait_for_file(tmp_path / "ready")
    process.terminate()
    assert process.wait(60) == 7
    assert process.stdin is not None
    process.stdin.close()
    assert not is_alive(group)


def test_killing_a_group_that_is_gone_is_fine() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    child.wait()
    keeper.kill_group(child.pid)
    assert os.waitstatus_to_exitcode(child.returncode) == 0


def test_a_keeper_that_is_killed_takes_its_command_along(tmp_path: Path) -> None:
    process, command = start_keeper(tmp_path, sys.executable, "-c", "import time; time.sleep(60)")
    assert process.stdin is not None
    process.kill()
    process.wait(60)
    process.stdin.close()
    wait_for_end(command)
    assert not is_alive(command)
