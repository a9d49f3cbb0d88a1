"""Workers of the GPU bench are seen at work together, are read when they are called off, and leave nothing behind."""

import asyncio
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.bench_gpu_steps import Unavailable, Wrong
from scripts.bench_gpu_workers import Worker, running_workers

GOOD = """
import sys
print("working", flush=True)
sys.stdin.read()
print('{"units": 3}', flush=True)
"""
DIES_AT_WORK = """
import sys
print("working", flush=True)
sys.stderr.write("loading\\nCUDA out of memory. Tried to allocate 2 GiB\\n")
sys.exit(7)
"""
NEVER_WORKS = "import sys; sys.stdin.read()"
NEVER_BEGINS = "raise SystemExit('no such model')"
LACKS = """print('{"missing": "not installed: faiss"}')"""
REAL = """
from scripts.bench_gpu_workers import work_until_called_off
done = []
work_until_called_off(lambda: (lambda: done.append(1), lambda: {"done": len(done)}))
"""
REAL_THAT_LACKS = """
from scripts.bench_gpu_workers import work_until_called_off
def prepare():
    import no_such_module
work_until_called_off(prepare)
"""


def run(folder: Path, patience_s: float = 30.0, **programs: str) -> tuple[dict[str, object], list[str]]:
    """Run workers, call them off at once, and return their figures and the order in which they were at work."""
    order: list[str] = []

    async def work() -> dict[str, object]:
        commands = {name: [sys.executable, "-c", program] for name, program in programs.items()}
        async with running_workers(commands, folder, patience_s, order.append) as workers:
            good = [worker for worker in workers if worker.name != "bad"]  # that one may have ended by now
            assert all(worker.process.returncode is None for worker in good), "they work at the same time"
            return {worker.name: await worker.finish() for worker in workers}

    return asyncio.run(work()), order


def test_workers_are_at_work_one_after_the_other_and_then_all_together(tmp_path: Path) -> None:
    found, order = run(tmp_path, first=GOOD, second=GOOD)
    assert order == ["first", "second"]
    assert found == {"first": {"units": 3}, "second": {"units": 3}}


def test_a_real_one_works_until_it_is_called_off(tmp_path: Path) -> None:
    found, _ = run(tmp_path, real=REAL)
    figures = found["real"]
    assert isinstance(figures, dict)
    assert figures["units"] == figures["done"] >= 1


def test_what_one_lacks_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not installed: faiss"):
        run(tmp_path, first=GOOD, second=LACKS)
    with pytest.raises(Unavailable, match="not installed: no_such_module"):
        run(tmp_path, real=REAL_THAT_LACKS)


@pytest.mark.parametrize(
    ("program", "patience_s", "message"),
    [
        (NEVER_BEGINS, 30, "bad: ended with 1: no such model"),
        (NEVER_WORKS, 0.5, "bad: wanted it at work within 0.5 s, found it still starting"),
        (DIES_AT_WORK, 30, "bad: ended with 7: CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_one_that_ends_badly_is_named_with_its_last_words_and_none_is_left(
    program: str, patience_s: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Wrong) as caught:
        run(tmp_path, patience_s, bad=program)
    assert str(caught.value) == message


def test_none_outlives_a_fault_of_what_runs_beside_them(tmp_path: Path) -> None:
    left: list[Worker] = []

    async def work() -> None:
        command = [sys.executable, "-c", GOOD]
        async with running_workers({"a": command, "b": command}, tmp_path, 30, lambda _: None) as workers:
            left.extend(workers)
            raise Wrong("500: no answer")

    with pytest.raises(Wrong, match="no answer"):
        asyncio.run(work())
    assert len(left) == 2
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(worker.process.pid) for worker in left):
        assert time.monotonic() < deadline
        time.sleep(0.02)
