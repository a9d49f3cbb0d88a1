"""kill -9 at any time of an ingestion loses nothing that was acknowledged and leaves nothing half-made (promise D1).

Every file holds a word of its own. After each kill: the database is whole, each acknowledged file is found by its word,
and the database, FAISS and BM25 hold the same chunks. The next run goes on where the killed one stopped. Kills come at
random times and at named places: each commit boundary of an ingestion and of the index's publication.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.layout import DataDir
from retrieval.config import IndexDevice
from retrieval.database import open_database, read_transaction
from retrieval.searcher import Searcher
from retrieval.snapshot import open_index
from retrieval.store import find_store
from tests.fakes.hash_embedder import HashEmbedder

REPO = Path(__file__).resolve().parents[2]
IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
RANDOM_KILLS = 20 if IS_FULL else 2
FILES = 40
DAMAGED = "zz-damaged.pdf"
PLACES = (
    "store.made",
    "documents.begun",
    "documents.embedded",
    "documents.written",
    "documents.committed",
    "failure.written",
    "failure.committed",
    "snapshot.written",
    "snapshot.hashed",
    "folder.synced",
    "folder.renamed",
    "snapshot.published",
    "snapshot.pruned",
)
QUICK_PLACES = ("documents.written", "failure.committed", "folder.renamed")
PASSED_OFTEN = {"documents.embedded", "documents.written", "documents.committed"}
"""Places that an ingestion of all files comes to three times and more."""
READY_S = 10.0
MANY_CHUNKS = 10_000


def name_of(number: int) -> str:
    return f"file{number:02d}.md"


def canary_of(number: int, version: int) -> str:
    return f"canary{number:02d}v{version}"


def write_source(folder: Path, version: int) -> None:
    """Files of several chunks; the file's own word stands in the last one. One more cannot be read."""
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        sections = [f"## Part {part}\n\n{'Some words about pumps. ' * 20}\n" for part in range(4)]
        (folder / name_of(number)).write_text(f"{''.join(sections)}\n\nThe word is {canary_of(number, version)}.\n")
    (folder / DAMAGED).write_bytes(b"%PDF-1.4 and then nothing of the kind")


def run_and_kill(
    data: DataDir, source: Path, kill_after: int | None = None, delay_s: float = 0.0, failpoint: str | None = None
) -> tuple[int, int]:
    """Ingest and kill it.

    Args:
        data: The data directory.
        source: The files.
        kill_after: How many acknowledged files to wait for; None to let it run.
        delay_s: How long to wait after that.
        failpoint: Where it shall die by itself.

    Returns:
        What it acknowledged, and its exit status.
    """
    command = [sys.executable, "-m", "tests.fakes.ingest_command", str(data.root), "acme", str(source)]
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": failpoint} if failpoint else {}
    acknowledged = 0
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True, env={**os.environ, **named}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "done\n":
                break
            acknowledged = int(line)
            if kill_after is not None and acknowledged >= kill_after:
                try:
                    process.wait(delay_s)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                kill_after = None
    return acknowledged, process.returncode


def check_store(data: DataDir, acknowledged: int, version: int) -> None:
    """What was acknowledged is found, and nothing is half there."""
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        rows = connection.execute(text("SELECT name, text FROM documents WHERE status = 'completed'")).all()
        ids = connection.execute(text("SELECT id FROM chunks ORDER BY id")).scalars().all()
        unlike = connection.execute(
            text(
                "SELECT COUNT(*) FROM documents d WHERE (d.status = 'completed') != "
                "EXISTS (SELECT 1 FROM chunks c WHERE c.document_id = d.id)"
            )
        ).scalar()
    assert unlike == 0, "a completed document without chunks, or another one with some"
    assert {name_of(number) for number in range(acknowledged)} <= {row.name for row in rows}
    index = open_index(engine, data, find_store(engine, "acme"), IndexDevice.cpu)
    assert index.numbers.tolist() == list(ids)
    assert index.lexical.size == len(ids)
    assert (index.dense.size if index.dense else 0) == len(ids)
    engine.dispose()
    check_snapshots(data, index.store.generation)
    searcher = Searcher(data, make_embedder=HashEmbedder)
    for number in range(acknowledged):
        hits = searcher.search(["acme"], canary_of(number, version), k=5).hits
        assert name_of(number) in [hit.file for hit in hits if canary_of(number, version) in hit.text]
    searcher.close()


def check_snapshots(data: DataDir, generation: int) -> None:
    """There is a whole snapshot of this generation, and at most the one before it."""
    generations = {int(path.name) for path in (data.indexes / "1").iterdir() if path.name.isdigit()}
    assert max(generations) == generation
    assert len(generations) <= 2


def check_versions(data: DataDir, versions: int) -> None:
    """Each document is there once, whole, in one version."""
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT id, name, text FROM documents WHERE status = 'completed'")).all()
        pieces = connection.execute(text("SELECT document_id, text FROM chunks ORDER BY id")).all()
    engine.dispose()
    for row in rows:
        number = int(row.name[4:6])
        words = " ".join(piece.text for piece in pieces if piece.document_id == row.id)
        found = [version for version in range(1, versions + 1) if canary_of(number, version) in words]
        assert len(found) == 1
        assert canary_of(number, found[0]) in row.text


def finish(data: DataDir, source: Path, version: int) -> None:
    """The next run goes on: every file completed or failed, nothing half-made left."""
    assert run_and_kill(data, source) == (FILES, 0)
    check_store(data, FILES, version)
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT status, COUNT(*) AS n FROM documents GROUP BY status")).all()
    engine.dispose()
    assert {row.status: row.n for row in rows} == {"completed": FILES, "failed": 1}


@pytest.mark.parametrize("seed", range(RANDOM_KILLS))
def test_a_kill_at_a_random_time_loses_nothing_acknowledged(
    tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(seed)
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    write_source(source, version=1)
    acknowledged, first = run_and_kill(data, source, chance.randrange(1, FILES), chance.uniform(0, 0.05))
    check_store(data, acknowledged, version=1)
    finish(data, source, version=1)
    # The same while every file is being replaced: each is the old or the new one, never both and never neither.
    write_source(source, version=2)
    acknowledged, second = run_and_kill(data, source, chance.randrange(1, FILES), chance.uniform(0, 0.05))
    check_store(data, acknowledged, version=2)
    check_versions(data, versions=2)
    record_property("kills_at_random_times", [first, second].count(-signal.SIGKILL))  # or it was done before


@pytest.mark.parametrize("place", PLACES if IS_FULL else QUICK_PLACES)
def test_a_kill_at_a_named_place_loses_nothing_acknowledged(
    tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    for version in range(1, 4 if IS_FULL else 2):  # three times: while the files are new, and twice while they change
        write_source(source, version)
        turn = version if place in PASSED_OFTEN else 1
        acknowledged, status = run_and_kill(data, source, failpoint=f"{place}:{turn}")
        assert status == -signal.SIGKILL, f"the ingestion did not come to {place}"
        check_store(data, acknowledged, version)
        check_versions(data, version)
        finish(data, source, version)
        record_property("kills_at_named_places", 1)


@pytest.mark.skipif(not IS_FULL, reason="10,000 chunks: in the full set (LOAM_TEST_FULL=1)")
def test_a_store_of_ten_thousand_chunks_is_ready_soon_after_a_kill(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    source.mkdir()
    sentences = [f"Sentence {number} tells of the part w{number} in a pump or a valve.\n\n" for number in range(50_000)]
    for number in range(20):
        (source / name_of(number)).write_text("".join(sentences[number::20]))
    _, status = run_and_kill(data, source, failpoint="snapshot.written")
    assert status == -signal.SIGKILL
    start = time.monotonic()
    searcher = Searcher(data, make_embedder=HashEmbedder)
    hits = searcher.search(["acme"], "the part w49999 in a pump", k=5).hits
    seconds = time.monotonic() - start
    chunks = sum(store.chunks for store in searcher.list_stores())
    searcher.close()
    record_property("chunks_of_the_largest_store", chunks)
    record_property("ready_again_s", round(seconds, 2))
    assert any("w49999 " in hit.text for hit in hits)
    assert chunks >= MANY_CHUNKS
    assert seconds < READY_S
