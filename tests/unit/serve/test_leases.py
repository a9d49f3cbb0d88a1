"""A lease names one process for good; what an earlier gateway left of a run is found and killed, and nothing else."""

import subprocess
import sys
import time
from dataclasses import replace

from serve.leases import end_leftovers, find_trainers, is_held, read_lease

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_lease_is_held_as_long_as_its_process_lives() -> None:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    lease = read_lease(process.pid)
    assert lease is not None
    assert is_held(lease)
    assert not is_held(replace(lease, started_ticks=lease.started_ticks + 1)), "another process of that number"
    assert not is_held(replace(lease, boot_id="another"))
    end_leftovers("ftjob-none", lease)
    assert process.wait(60) == -9
    assert not is_held(lease)


def test_a_dead_process_that_nobody_has_waited_for_holds_nothing() -> None:
    process = subprocess.Popen(SLEEP)
    lease = read_lease(process.pid)
    assert lease is not None
    process.kill()
    deadline = time.monotonic() + 60
    while is_held(lease):
        assert time.monotonic() < deadline
    process.wait()
    assert read_lease(process.pid) is None


def test_trainers_are_found_by_their_run() -> None:
    mine = subprocess.Popen([*SLEEP, "run_id=ftjob-test-leases", "resume=auto"])
    other = subprocess.Popen([*SLEEP, "run_id=ftjob-test-leases-2", "resume=auto"])
    try:
        deadline = time.monotonic() + 60
        while not find_trainers("ftjob-test-leases-2"):
            assert time.monotonic() < deadline
        assert find_trainers("ftjob-test-leases") == [mine.pid]
        assert end_leftovers("ftjob-test-leases", None) == [mine.pid]
        assert mine.wait(60) == -9
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
