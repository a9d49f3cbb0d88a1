"""Locks between processes: one holder, named even where it is late to write its name; freed however it ends."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import Conflict, LoamError
from core.lock import hold_lock

HOLDER = """
import sys
from pathlib import Path
from core.errors import Conflict
from core.lock import hold_lock
with hold_lock(Path(sys.argv[1]), Conflict):
    print("held", flush=True)
    sys.stdin.read()
"""
LATE_HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(0.2)
file.truncate(0)
print(os.getpid(), file=file, flush=True)
sys.stdin.read()
"""
NAMELESS_HOLDER = LATE_HOLDER.replace("print(os.getpid(), file=file, flush=True)", "")
DEAD = 999_999_999


@contextmanager
def start(program: str, path: Path) -> Iterator[int]:
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder.pid
        finally:
            holder.kill()


@pytest.mark.parametrize("program", [HOLDER, LATE_HOLDER])
def test_a_second_one_is_refused_with_the_first_ones_id_until_it_is_killed(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.lock.NAMED_WITHIN_S", 60)
    path = tmp_path / "lock"
    path.write_text(f"{DEAD}\n")  # of one that was killed before
    with start(program, path) as holder:
        with pytest.raises(Conflict) as refusal, hold_lock(path, Conflict):
            pytest.fail("two held the lock")
        assert refusal.value.message == str(holder)
    with hold_lock(path, Conflict):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_holder_without_a_name_is_not_waited_for_long(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with start(NAMELESS_HOLDER, path), pytest.raises(Conflict, match=r"^unknown$"), hold_lock(path, Conflict):
        pytest.fail("two held the lock")


@pytest.mark.parametrize("content", ["", "9" * 100, "999999999 and more\n", "\xff\x00"])
def test_what_a_file_says_does_not_block(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content.encode("latin-1"))
    with hold_lock(path, Conflict):
        assert path.read_text() == f"{os.getpid()}\n"
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(Conflict), hold_lock(path, Conflict):
            pytest.fail("two held the lock")


def test_it_is_free_again_after_use_and_is_this_users_own(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    for _ in range(2):
        with hold_lock(path, Conflict):
            assert path.stat().st_mode & 0o777 == 0o600


def test_a_child_does_not_inherit_it(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock", Conflict):
        sleep = "print('here', flush=True); import time; time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", sleep], close_fds=False, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"  # the new program runs: descriptors were closed by now
        child.stdout.close()
        with hold_lock(tmp_path / "lock", Conflict):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LoamError, match="lock"), hold_lock(tmp_path / "file" / "lock", Conflict):
        pytest.fail("it was held")
