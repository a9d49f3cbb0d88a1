"""kill -9 at any time of an ingestion loses nothing that was acknowledged and leaves nothing half-made (promise D1).

Every file holds a word of its own. After each kill: the database is whole, each acknowledged file is found by its word,
and the database, FAISS and BM25 hold the same chunks. The next run goes on where the killed one stopped.
"""

import os
import random
import signal
import subprocess
import sys
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
KILLS = 50 if os.environ.get("LOAM_TEST_FULL") else 5
FILES = 40


def name_of(number: int) -> str:
    return f"file{number:02d}.md"


def canary_of(number: int, version: int) -> str:
    return f"canary{number:02d}v{version}"


def write_source(folder: Path, version: int) -> None:
    """Files of several chunks; the file's own word stands in the last one."""
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        sections = [f"## Part {part}\n\n{'Some words about pumps. ' * 20}\n" for part in range(4)]
        (folder / name_of(number)).write_text(f"{''.join(sections)}\n\nThe word is {canary_of(number, version)}.\n")


def run_and_kill(data: DataDir, source: Path, kill_after: int | None, delay_s: float) -> int:
    """Ingest; kill it `delay_s` after it has acknowledged `kill_after` files. Return what it acknowledged."""
    command = [sys.executable, "-m", "tests.fakes.ingest_command", str(data.root), "acme", str(source)]
    acknowledged = 0
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
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
    return acknowledged


def check_store(data: DataDir, acknowledged: int, version: int) -> None:
    """What was acknowledged is found, and nothing is half there."""
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        rows = connection.execute(text("SELECT name, text FROM documents WHERE status = 'completed'")).all()
        orphans = connection.execute(
            text("SELECT COUNT(*) FROM chunks WHERE document_id NOT IN (SELECT id FROM documents)")
        ).scalar()
        ids = connection.execute(text("SELECT id FROM chunks ORDER BY id")).scalars().all()
        covered = connection.execute(
            text(
                "SELECT COUNT(*) FROM documents d WHERE d.status = 'completed' "
                "AND NOT EXISTS (SELECT 1 FROM chunks c WHERE c.document_id = d.id)"
            )
        ).scalar()
    assert (orphans, covered) == (0, 0)
    names = {row.name for row in rows}
    assert {name_of(number) for number in range(acknowledged)} <= names
    index = open_index(engine, data, find_store(engine, "acme"), IndexDevice.cpu)
    assert index.numbers.tolist() == list(ids)
    assert index.lexical.size == len(ids)
    assert (index.dense.flat.ntotal if index.dense else 0) == len(ids)
    engine.dispose()
    searcher = Searcher(data, make_embedder=HashEmbedder)
    for number in range(acknowledged):
        hits = searcher.search(["acme"], canary_of(number, version), k=5).hits
        assert name_of(number) in [hit.file for hit in hits if canary_of(number, version) in hit.text]
    searcher.close()


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_kill_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    write_source(source, version=1)
    acknowledged = run_and_kill(data, source, chance.randrange(1, FILES), chance.uniform(0, 0.05))
    check_store(data, acknowledged, version=1)
    assert run_and_kill(data, source, None, 0) == FILES
    check_store(data, FILES, version=1)
    # The same while every file is being replaced: each is the old or the new one, never both and never neither.
    write_source(source, version=2)
    acknowledged = run_and_kill(data, source, chance.randrange(1, FILES), chance.uniform(0, 0.05))
    check_store(data, acknowledged, version=2)
    check_versions(data)


def check_versions(data: DataDir) -> None:
    """Each document is there once, whole, in one version."""
    with read_transaction(open_database(data.database)) as connection:
        rows = connection.execute(text("SELECT id, name, text FROM documents")).all()
        pieces = connection.execute(text("SELECT document_id, text FROM chunks ORDER BY id")).all()
    assert len(rows) == FILES
    for row in rows:
        words = " ".join(piece.text for piece in pieces if piece.document_id == row.id)
        versions = [version for version in (1, 2) if canary_of(int(row.name[4:6]), version) in words]
        assert len(versions) == 1
        assert canary_of(int(row.name[4:6]), versions[0]) in row.text
