"""A full disk is said so, costs nothing that was there, and work goes on without a restart once there is room (D6)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
POINTS = 20 if os.environ.get("LOAM_TEST_FULL") else 4
DISK_MIB = 24
SEED = 6


def can_mount(folder: Path) -> bool:
    """Tell whether this system lets a plain user mount a small disk for one process."""
    if shutil.which("unshare") is None:
        return False
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def test_a_full_disk_costs_nothing_that_was_there(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if not can_mount(tmp_path):
        pytest.skip("wanted a user namespace to mount a small disk in, found none; this test proves nothing here")
    program = f"{sys.executable} -m tests.fakes.full_disk_command {tmp_path} {SEED} {POINTS}"
    script = f"mount -t tmpfs -o size={DISK_MIB}m tmpfs {tmp_path} && exec {program}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    points = told["points"]
    assert len(points) == POINTS
    outcomes = [outcome for point in points for outcome in point["full"].values()]
    assert set(outcomes) == {"done", "StorageFull"}, f"seed {SEED}: {points}"
    for point in points:
        assert point["found"], point
        assert point["found_later"], point
        assert set(point["later"].values()) == {"done"}, point
        assert point["faults"] == [], point
    assert told["attached"] == f"{told['uploads']} of {told['uploads']}"
    record_property("points", len(points))
    record_property("refusals", outcomes.count("StorageFull"))
