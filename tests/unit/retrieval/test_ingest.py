"""Ingestion brings good files in, lists bad ones, skips unchanged ones, and re-embeds only what says something else."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from core.errors import Conflict, InputError, InvalidFile, NotFound, StorageFull
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.document import Document
from retrieval.ingest import IngestReport, ingest, lock_store, rebuild
from retrieval.parsing import ParserPool
from retrieval.snapshot import snapshot_folder
from retrieval.source import list_files
from retrieval.status import list_stores
from retrieval.store import NewDocument, Store, commit_documents, find_store, read_chunks
from tests.fakes.hash_embedder import HashEmbedder
from tests.open_watch import watch_openings

PUMP = "# Pump\n\nThe pump has a warranty of 26 months.\n\n## Care\n\nClean the filter every month.\n"
DUCK = "# Duck\n\nDucks eat grain and grass.\n"


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "pump.md").write_text(PUMP)
    (folder / "deep" / "duck.md").write_text(DUCK)
    return folder


def run(data: DataDir, source: Path, embedder: HashEmbedder | None = None, **settings: int) -> IngestReport:
    return ingest(
        data,
        "acme",
        source,
        embedder=embedder or HashEmbedder(),
        chunking=ChunkingConfig(settings.get("max_tokens", 60), overlap_tokens=16),
        parsing=ParsingConfig(max_file_mib=1),
    )


def read_texts(data: DataDir) -> dict[str, str | None]:
    """Heading of each chunk's text in the store."""
    engine = open_database(data.database)
    _, rows = read_chunks(engine, find_store(engine, "acme"))
    return {row.text: row.heading for row in rows}


def test_a_folder_is_ingested_with_its_headings(data: DataDir, source: Path) -> None:
    report = run(data, source)
    assert (report.found, report.ingested, report.unchanged, report.failures) == (2, 2, 0, [])
    assert (report.chunks, report.embedded) == (3, 3)
    assert read_texts(data) == {
        "The pump has a warranty of 26 months.": "Pump",
        "Clean the filter every month.": "Pump > Care",
        "Ducks eat grain and grass.": "Duck",
    }
    engine = open_database(data.database)
    assert snapshot_folder(data, find_store(engine, "acme")).is_dir()


def test_the_embedder_sees_the_heading_and_the_text(data: DataDir, source: Path) -> None:
    embedder = HashEmbedder()
    run(data, source, embedder)
    assert "Pump > Care\nClean the filter every month." in embedder.embedded


def test_unchanged_files_are_passed_over(data: DataDir, source: Path) -> None:
    run(data, source)
    embedder = HashEmbedder()
    report = run(data, source, embedder)
    assert (report.ingested, report.unchanged, report.embedded) == (0, 2, 0)
    assert embedder.embedded == []
    engine = open_database(data.database)
    assert find_store(engine, "acme").generation == 1  # both documents came in one transaction


def test_an_ingestion_that_changes_nothing_opens_no_file_of_the_index(data: DataDir, source: Path) -> None:
    run(data, source)
    engine = open_database(data.database)
    folder = snapshot_folder(data, find_store(engine, "acme"))
    with watch_openings(folder) as openings:
        run(data, source)
    assert openings.by_system.total() == 0
    shutil.rmtree(folder)
    run(data, source)
    assert folder.is_dir()


def test_only_changed_chunks_are_embedded_again(data: DataDir, source: Path) -> None:
    run(data, source)
    (source / "pump.md").write_text(PUMP.replace("every month", "twice a month"))
    embedder = HashEmbedder()
    report = run(data, source, embedder)
    assert (report.ingested, report.unchanged, report.chunks, report.embedded) == (1, 1, 2, 1)
    assert embedder.embedded == ["Pump > Care\nClean the filter twice a month."]
    assert "Clean the filter every month." not in read_texts(data)


def test_other_chunk_sizes_make_documents_anew(data: DataDir, source: Path) -> None:
    run(data, source)
    assert run(data, source, max_tokens=50).ingested == 2


def test_bad_files_are_listed_and_stop_no_other(data: DataDir, source: Path) -> None:
    (source / "empty.md").write_text("")
    (source / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (source / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (source / "huge.txt").write_bytes(b"a" * (2**20 + 1))
    report = run(data, source)
    assert report.ingested == 2
    codes = {failure.file: failure.code for failure in report.failures}
    assert codes == {
        "broken.pdf": "invalid_file",
        "empty.md": "invalid_file",
        "huge.txt": "invalid_file",
        "picture.png": "unsupported_file",
    }
    assert all(failure.reason.endswith(".") for failure in report.failures)
    (status,) = list_stores(open_database(data.database))
    assert (status.files, status.failed) == (2, 4)


def test_a_file_that_has_become_bad_keeps_its_earlier_version(data: DataDir, source: Path) -> None:
    run(data, source)
    (source / "pump.md").write_text("")
    report = run(data, source)
    assert "earlier version stays" in report.failures[0].reason
    assert "Clean the filter every month." in read_texts(data)


def test_a_single_file_is_a_source(data: DataDir, source: Path) -> None:
    assert run(data, source / "pump.md").ingested == 1
    assert [file.name for file in list_files(source / "pump.md", data)] == ["pump.md"]


def test_hidden_files_links_and_the_data_directory_are_left_out(source: Path) -> None:
    (source / ".git").mkdir()
    (source / ".git" / "config.txt").write_text("x")
    (source / ".hidden.md").write_text("x")
    (source / "link.md").symlink_to("/etc/hostname")
    data = DataDir(source / "data")
    data.root.mkdir()
    (data.root / "notes.md").write_text("x")
    assert [file.name for file in list_files(source, data)] == ["pump.md", "deep/duck.md"]


def test_a_source_without_files_is_refused(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"wanted files in .*, found none"):
        run(data, tmp_path / "empty")
    with pytest.raises(NotFound, match="found nothing at"):
        run(data, tmp_path / "missing")
    assert not data.database.exists()


def test_one_process_at_a_time_changes_a_store(data: DataDir, source: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from core.layout import DataDir\n"
        "from retrieval.ingest import lock_store\n"
        "with lock_store(DataDir(Path(sys.argv[1])), 'acme'):\n    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(data.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(Conflict, match=f"process {child.pid} is changing it"):
            run(data, source)
        with lock_store(data, "other"):
            child.kill()
    assert run(data, source).ingested == 2


def test_a_full_disk_ends_the_run_and_keeps_what_was_committed(
    data: DataDir, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed: list[str] = []

    def fill_disk(engine: Engine, store: Store, documents: Sequence[NewDocument]) -> int:
        if committed:
            raise StorageFull("full")
        committed.extend(document.name for document in documents)
        return commit_documents(engine, store, documents)

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.ingest.BATCH_CHUNKS", 1)
        patch.setattr("retrieval.ingest.commit_documents", fill_disk)
        with pytest.raises(StorageFull):
            run(data, source)
    assert list_stores(open_database(data.database))[0].files == 1
    assert run(data, source).ingested == 1


def test_who_stops_waits_for_no_file_that_has_not_been_begun(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    class SlowPool(ParserPool):
        def parse(self, path: Path, name: str | None = None) -> Document:
            parsed.append(name or path.name)
            time.sleep(0.1)
            raise InvalidFile("It holds nothing.")

    def stop(_: IngestReport) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retrieval.ingest.ParserPool", SlowPool)
    source = tmp_path / "many"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.md").write_text("x")
    tools: dict[str, Any] = {"embedder": HashEmbedder(), "chunking": ChunkingConfig()}
    with pytest.raises(KeyboardInterrupt):
        ingest(data, "acme", source, parsing=ParsingConfig(workers=1), progress=stop, **tools)
    assert len(parsed) < 10


def test_a_rebuild_needs_the_database_only(data: DataDir, source: Path) -> None:
    run(data, source)
    for path in data.indexes.rglob("*-vectors.npy"):
        path.unlink()
    assert len(rebuild(data, "acme").numbers) == 3
    assert len(list(data.indexes.rglob("*-vectors.npy"))) == 1
    with pytest.raises(NotFound, match="wanted one of acme"):
        rebuild(data, "other")
