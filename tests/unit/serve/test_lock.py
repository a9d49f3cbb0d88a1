"""The data directory's lock: one holder, named; freed however the holder ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import Conflict
from serve.lock import LOCK_NAME, lock_data_dir, refuse_second

HOLDER = """
import sys, time
from pathlib import Path
from serve.lock import lock_data_dir
with lock_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(root: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.stdout.close()
    return holder


def test_a_second_one_is_refused_with_the_first_ones_id_until_it_is_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    with pytest.raises(Conflict, match=str(holder.pid)), lock_data_dir(tmp_path):
        pytest.fail("two held the lock")
    holder.kill()
    holder.wait()
    with lock_data_dir(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_it_makes_the_directory_for_its_owner_alone(tmp_path: Path) -> None:
    with lock_data_dir(tmp_path / "new" / "data"):
        assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "new" / "data" / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_second_one_is_refused_before_it_makes_anything(tmp_path: Path) -> None:
    refuse_second(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with lock_data_dir(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"):
        refuse_second(tmp_path)
    refuse_second(tmp_path)  # the lock's file stays, its holder has gone
    with lock_data_dir(tmp_path):
        pass
