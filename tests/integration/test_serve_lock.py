"""Two gateways on one data directory: the second is refused with the first's id; a dead one blocks nobody (D7)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import Conflict
from serve.lock import LOCK_NAME

REPO = Path(__file__).resolve().parents[2]
STARTS = 20 if os.environ.get("LOAM_TEST_FULL") else 2
HOLDER = """
import sys, time
from pathlib import Path
import core.lock
from core.errors import Conflict
from serve.lock import lock_data_dir
core.lock.NAMED_WITHIN_S = 60  # the other one may be stalled before it has written its name
print("ready", flush=True)
sys.stdin.readline()
start = time.monotonic()
try:
    with lock_data_dir(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except Conflict as error:
    print(f"{time.monotonic() - start:.3f} {error.message}", flush=True)
"""


@contextmanager
def start(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert read_line(process) == "ready"
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("turn", range(STARTS))
def test_of_two_that_start_at_once_one_is_refused(
    tmp_path: Path, turn: int, record_property: Callable[[str, object], None]
) -> None:
    with start(tmp_path) as one, start(tmp_path) as other:
        for process in (one, other) if turn % 2 else (other, one):
            release(process)
        answers = {process.pid: read_line(process) for process in (one, other)}
        (holder,) = [pid for pid, answer in answers.items() if answer == "held"]
        (refusal,) = [answer for answer in answers.values() if answer != "held"]
        seconds, _, message = refusal.partition(" ")
        assert f"process {holder})" in message
        record_property("refused", 1)
        record_property("refused_after_s", seconds)


@pytest.mark.parametrize("turn", range(STARTS))
def test_one_that_was_killed_blocks_nobody(
    tmp_path: Path, turn: int, record_property: Callable[[str, object], None]
) -> None:
    with start(tmp_path) as killed:
        release(killed)
        assert read_line(killed) == "held"
        with start(tmp_path) as second:
            release(second)
            assert f"process {killed.pid}" in read_line(second)
        killed.kill()
        killed.wait()
        with start(tmp_path) as third:
            release(third)
            assert read_line(third) == "held", f"turn {turn}"
            assert (tmp_path / LOCK_NAME).read_text() == f"{third.pid}\n"
        record_property("started_after_a_kill", 1)


def test_a_second_gateway_ends_with_the_firsts_id(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-X", "importtime", "serve/run.py", f"paths.data_dir={tmp_path}"]
    with start(tmp_path) as first:
        release(first)
        assert read_line(first) == "held"
        begin = time.monotonic()
        second = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
        seconds = time.monotonic() - begin
    assert second.returncode == Conflict.exit_code
    assert f"process {first.pid}" in second.stderr
    assert "Stop it first" in second.stderr
    imported = {line.rpartition("|")[2].strip() for line in second.stderr.splitlines() if "import time:" in line}
    assert "omegaconf" in imported
    assert imported.isdisjoint({"fastapi", "uvicorn", "sqlalchemy", "faiss", "numpy", "tokenizers"})  # seconds of them
    record_property("gateway_refused_with_its_imports_after_s", round(seconds, 2))
