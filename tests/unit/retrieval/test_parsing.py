"""The child process that parses: answers, limits, and what happens when it dies."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import InvalidFile, NotFound, UnsupportedFile
from retrieval.loaders import load_document
from retrieval.parsing import ParserPool

ACME = Path(__file__).parents[3] / "examples" / "acme" / "documents"


@pytest.fixture(scope="module")
def pool() -> Iterator[ParserPool]:
    with ParserPool() as pool:
        yield pool


def child_pid(pool: ParserPool) -> int:
    return next(worker._process.pid for worker in pool._workers if worker._process is not None)


@pytest.mark.parametrize("name", ["hr-safety.pdf", "hr-travel.docx", "service-plan.html", "payment-terms.md"])
def test_the_child_reads_what_the_loaders_read(pool: ParserPool, name: str) -> None:
    assert pool.parse(ACME / name) == load_document(ACME / name)


def test_errors_keep_their_class_and_the_child_lives_on(pool: ParserPool, tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "empty.md").write_text("")
    pool.parse(ACME / "hr-safety.pdf")
    before = child_pid(pool)
    for name, error in (("a.xyz", UnsupportedFile), ("empty.md", InvalidFile), ("gone.md", NotFound)):
        with pytest.raises(error):
            pool.parse(tmp_path / name)
    assert child_pid(pool) == before


def test_a_child_that_died_is_replaced(pool: ParserPool) -> None:
    wanted = pool.parse(ACME / "hr-safety.pdf")
    child = psutil.Process(child_pid(pool))
    child.kill()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert pool.parse(ACME / "hr-safety.pdf") == wanted


def test_a_child_that_dies_over_a_file_costs_that_file(pool: ParserPool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.md")  # reading it waits for ever
    pool.parse(ACME / "hr-safety.pdf")
    pid = child_pid(pool)

    def kill_once_it_reads() -> None:
        with (tmp_path / "hangs.md").open("wb"):  # waits for a reader
            os.kill(pid, signal.SIGSEGV)

    threading.Thread(target=kill_once_it_reads, daemon=True).start()
    with pytest.raises(InvalidFile, match="signal 11"):
        pool.parse(tmp_path / "hangs.md")
    assert pool.parse(ACME / "hr-safety.pdf").sections
    assert child_pid(pool) != pid


def test_a_file_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.md")
    with ParserPool(timeout_s=1.0) as pool, pytest.raises(InvalidFile, match="within 1 seconds"):
        pool.parse(tmp_path / "hangs.md")


def test_a_file_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"word " * 60_000_000)
    with ParserPool(memory_bytes=400 * 2**20) as pool:
        with pytest.raises(InvalidFile, match=r"memory|stop"):
            pool.parse(tmp_path / "large.txt")
        assert pool.parse(ACME / "hr-safety.pdf").sections


def test_the_child_has_no_secrets(pool: ParserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAM_SECRET", "key")
    with ParserPool() as fresh:
        fresh.parse(ACME / "payment-terms.md")
        environment = Path(f"/proc/{child_pid(fresh)}/environ").read_bytes()
    assert b"LOAM_SECRET" not in environment


def test_threads_may_share_a_pool(pool: ParserPool) -> None:
    names = sorted(path.name for path in ACME.iterdir())[:12]
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: pool.parse(ACME / name).text})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: load_document(ACME / name).text for name in names}


def test_closing_leaves_no_child() -> None:
    pool = ParserPool(2)
    pool.parse(ACME / "payment-terms.md")
    pid = child_pid(pool)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
