"""kill -9 at any time of an ingestion loses nothing that was acknowledged and leaves nothing half-made (promise D1).

Every file holds a word of its own. After each kill: the database is whole, each acknowledged file is found by its word,
and the database, FAISS and BM25 hold the same chunks. The next run goes on where the killed one stopped. Kills come at
random times and at named places: each commit boundary of an ingestion and of the index's publication.
"""

import os
import random
import signal
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
from retrieval.status import list_stores
from retrieval.store import find_store
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.warm_python import WarmPython

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
    programs: WarmPython,
    data: DataDir,
    source: Path,
    kill_after: int | None = None,
    delay_s: float = 0.0,
    failpoint: str | None = None,
) -> tuple[int, int]:
    """Ingest and kill it.

    Args:
        programs: What starts it.
        data: The data directory.
        source: The files.
        kill_after: How many acknowledged files to wait for, 0: none; None to let it run.
        delay_s: How long to wait after that.
        failpoint: Where it shall die by itself.

    Returns:
        What it acknowledged, and its exit status.
    """
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": failpoint} if failpoint else {}
    acknowledged = 0
    with programs.start("tests.fakes.ingest_command", str(data.root), "acme", str(source), **named) as program:
        if kill_after == 0:
            time.sleep(delay_s)
            program.kill()
            kill_after = None
        for line in program.output:
            if line == "done\n":
                break
            acknowledged = int(line)
            if kill_after is not None and acknowledged >= kill_after:
                time.sleep(delay_s)
                program.kill()
                kill_after = None
        return acknowledged, program.wait()


def check_store(data: DataDir, acknowledged: int, version: int) -> None:
    """What was acknowledged is found, and nothing is half there."""
    engine = open_database(data.database)
    if not list_stores(engine):  # killed before it made the store
        assert not acknowledged
        engine.dispose()
        return
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
    completed = {int(row.name[4:6]) for row in rows}
    assert completed >= set(range(acknowledged))
    index = open_index(engine, data, find_store(engine, "acme"), IndexDevice.cpu)
    assert index.numbers.tolist() == list(ids)
    assert index.lexical.size == len(ids)
    assert (index.dense.size if index.dense else 0) == len(ids)
    engine.dispose()
    check_snapshots(data, index.store.generation)
    searcher = Searcher(data, make_embedder=HashEmbedder)
    for number in completed:
        versions = [version] if number < acknowledged else range(1, version + 1)  # the new one or the one before
        found = [canary_of(number, one) for one in versions if finds(searcher, number, one)]
        assert len(found) == 1, f"{name_of(number)}: its word finds {found}"
    searcher.close()


def finds(searcher: Searcher, number: int, version: int) -> bool:
    """Tell whether a file is among the five that its word finds."""
    word = canary_of(number, version)
    hits = searcher.search(["acme"], word, k=5).hits
    return name_of(number) in [hit.file for hit in hits if word in hit.text]


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


def finish(programs: WarmPython, data: DataDir, source: Path, version: int) -> None:
    """The next run goes on: every file completed or failed, nothing half-made left."""
    assert run_and_kill(programs, data, source) == (FILES, 0)
    check_store(data, FILES, version)
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT status, COUNT(*) AS n FROM documents GROUP BY status")).all()
    engine.dispose()
    assert {row.status: row.n for row in rows} == {"completed": FILES, "failed": 1}


def pick_time(chance: random.Random, turn: int) -> tuple[int, float]:
    """When to kill: every second time after some acknowledged file, else at any time from the start on."""
    return (chance.randrange(1, FILES), chance.uniform(0, 0.05)) if turn % 2 else (0, chance.uniform(0, 1.0))


@pytest.mark.parametrize("seed", range(RANDOM_KILLS))
def test_a_kill_at_a_random_time_loses_nothing_acknowledged(
    programs: WarmPython, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(seed)
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    write_source(source, version=1)
    acknowledged, first = run_and_kill(programs, data, source, *pick_time(chance, seed))
    check_store(data, acknowledged, version=1)
    finish(programs, data, source, version=1)
    # The same while every file is being replaced: each is the old or the new one, never both and never neither.
    write_source(source, version=2)
    acknowledged, second = run_and_kill(programs, data, source, *pick_time(chance, seed + 1))
    check_store(data, acknowledged, version=2)
    check_versions(data, versions=2)
    record_property("kills_at_random_times", [first, second].count(-signal.SIGKILL))  # or it was done before


@pytest.mark.parametrize("place", PLACES if IS_FULL else QUICK_PLACES)
def test_a_kill_at_a_named_place_loses_nothing_acknowledged(
    programs: WarmPython, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    for version in range(1, 4 if IS_FULL else 2):  # three times: while the files are new, and twice while they change
        write_source(source, version)
        turn = version if place in PASSED_OFTEN else 1
        acknowledged, status = run_and_kill(programs, data, source, failpoint=f"{place}:{turn}")
        assert status == -signal.SIGKILL, f"the ingestion did not come to {place}"
        check_store(data, acknowledged, version)
        check_versions(data, version)
        finish(programs, data, source, version)
        record_property("kills_at_named_places", 1)


@pytest.mark.parametrize("place", ["renaming.written", "renaming.committed"] if IS_FULL else ["renaming.committed"])
def test_a_kill_while_files_are_renamed_leaves_each_under_one_name(
    programs: WarmPython, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    write_source(source, version=1)
    sync = ("tests.fakes.sync_command", str(data.root), "acme", str(source))
    with programs.start(*sync) as program:
        assert program.wait() == 0
    before = read_names(data)
    for number in range(FILES):
        (source / name_of(number)).rename(source / f"moved{number:02d}.md")
    with programs.start(*sync, LOAM_TEST_BUILD="1", LOAM_FAILPOINT=place) as program:
        assert program.wait() == -signal.SIGKILL
    moved = {number: f"moved{name[4:]}" for number, name in before.items()}
    assert read_names(data) == (before if place == "renaming.written" else moved)
    with programs.start(*sync) as program:
        assert program.wait() == 0
    assert read_names(data) == moved  # the same rows: nothing was made anew
    record_property("kills_at_named_places", 1)


def read_names(data: DataDir) -> dict[int, str]:
    """Names of the documents that can be found, by their rows."""
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT id, name FROM documents WHERE status = 'completed'")).all()
    engine.dispose()
    return {row.id: row.name for row in rows}


@pytest.mark.skipif(not IS_FULL, reason="10,000 chunks: in the full set (LOAM_TEST_FULL=1)")
def test_a_store_of_ten_thousand_chunks_is_ready_soon_after_a_kill(
    programs: WarmPython, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    source.mkdir()
    sentences = [f"Sentence {number} tells of the part w{number} in a pump or a valve.\n\n" for number in range(50_000)]
    for number in range(20):
        (source / name_of(number)).write_text("".join(sentences[number::20]))
    _, status = run_and_kill(programs, data, source, failpoint="snapshot.written")
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
