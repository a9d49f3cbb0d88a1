"""A sync makes a store hold what its folder holds, embeds only what is new, and refuses to remove everything."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from core.errors import InputError, NotFound
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database, write_transaction
from retrieval.documents import list_documents
from retrieval.ingest import IngestReport, ingest
from retrieval.searcher import Searcher
from retrieval.status import list_stores
from retrieval.store import find_store, read_chunks
from retrieval.sync import SyncRules, delete, sync
from tests.fakes.hash_embedder import HashEmbedder

PUMP = "# Pump\n\nThe pump has a warranty of 26 months.\n\n## Care\n\nClean the filter every month.\n"
DUCK = "# Duck\n\nDucks eat grain and grass.\n"
LONG_AGO = 1_600_000_000


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    write(folder / "pump.md", PUMP)
    write(folder / "deep" / "duck.md", DUCK)
    return folder


def write(path: Path, content: str, modified_at: int = LONG_AGO) -> None:
    path.write_text(content)
    os.utime(path, (modified_at, modified_at))


def run(
    data: DataDir, source: Path, embedder: HashEmbedder | None = None, *, is_additive: bool = False, **rules: Any
) -> IngestReport:
    call = ingest if is_additive else sync
    settings = rules if is_additive else {"rules": SyncRules(**rules)}
    return call(
        data,
        "acme",
        source,
        embedder=embedder or HashEmbedder(),
        chunking=ChunkingConfig(60, overlap_tokens=16),
        parsing=ParsingConfig(),
        **settings,
    )


def counts(report: IngestReport) -> dict[str, int]:
    """What a report counts, zeros left out."""
    values = {name: getattr(report, name) for name in ("added", "changed", "renamed", "removed", "unchanged")}
    values |= {"failed": len(report.failures), "embedded": report.embedded, "reused": report.reused}
    return {name: value for name, value in values.items() if value}


def read_ids(data: DataDir) -> dict[str, int]:
    engine = open_database(data.database)
    _, rows = read_chunks(engine, find_store(engine, "acme"))
    engine.dispose()
    return {row.text: row.id for row in rows}


def list_names(data: DataDir) -> list[str]:
    engine = open_database(data.database)
    names = [document.file for document in list_documents(engine, find_store(engine, "acme"))]
    engine.dispose()
    return names


def test_a_sync_follows_the_folder(data: DataDir, source: Path) -> None:
    assert counts(run(data, source)) == {"added": 2, "embedded": 3}
    assert counts(run(data, source)) == {"unchanged": 2}
    write(source / "pump.md", PUMP.replace("every month", "twice a month"), LONG_AGO + 1)
    write(source / "goose.md", "# Goose\n\nGeese swim.\n")
    (source / "deep" / "duck.md").unlink()
    embedder = HashEmbedder()
    report = run(data, source, embedder)
    assert counts(report) == {"added": 1, "changed": 1, "removed": 1, "embedded": 2, "reused": 1}
    assert len(embedder.embedded) == 2
    assert list_names(data) == ["goose.md", "pump.md"]
    searcher = Searcher(data, make_embedder=HashEmbedder)
    assert {hit.file for hit in searcher.search(["acme"], "ducks eat grain", k=10).hits} <= {"goose.md", "pump.md"}
    searcher.close()


def test_a_renamed_file_keeps_its_chunks_and_their_ids(data: DataDir, source: Path) -> None:
    run(data, source)
    before = read_ids(data)
    (source / "pump.md").rename(source / "deep" / "brook.md")
    embedder = HashEmbedder()
    assert counts(run(data, source, embedder)) == {"renamed": 1, "unchanged": 1}
    assert embedder.embedded == []
    assert read_ids(data) == before
    assert list_names(data) == ["deep/brook.md", "deep/duck.md"]
    searcher = Searcher(data, make_embedder=HashEmbedder)
    assert searcher.search(["acme"], "pump warranty").hits[0].file == "deep/brook.md"
    searcher.close()
    assert counts(run(data, source)) == {"unchanged": 2}


def test_a_file_of_another_kind_is_read_anew_with_the_vectors_it_had(data: DataDir, source: Path) -> None:
    run(data, source)
    (source / "pump.md").rename(source / "pump.markdown")
    assert counts(run(data, source)) == {"added": 1, "removed": 1, "unchanged": 1, "reused": 2}


def test_a_chunk_that_is_anywhere_in_the_store_is_not_embedded_again(data: DataDir, source: Path) -> None:
    run(data, source)
    write(source / "copy.md", PUMP + "\n## New\n\nSomething else.\n")
    write(source / "twin.md", "# Twin\n\nThe same.\n")
    write(source / "twin2.md", "# Twin\n\nThe same.\n\n## More\n\nOf this.\n")
    embedder = HashEmbedder()
    assert counts(run(data, source, embedder)) == {"added": 3, "unchanged": 2, "embedded": 3, "reused": 3}
    assert set(embedder.embedded) == {"Pump > New\nSomething else.", "Twin > More\nOf this.", "Twin\nThe same."}


def test_an_unchanged_stamp_spares_reading_and_verify_does_not(data: DataDir, source: Path) -> None:
    run(data, source)
    with (source / "pump.md").open("r+b") as file:  # the same size, time and inode, other bytes
        file.write(PUMP.replace("26", "27").encode())
    os.utime(source / "pump.md", (LONG_AGO, LONG_AGO))
    assert counts(run(data, source)) == {"unchanged": 2}
    assert counts(run(data, source, is_additive=True)) == {"unchanged": 2}
    assert counts(run(data, source, verify=True)) == {"changed": 1, "unchanged": 1, "embedded": 1, "reused": 1}


def test_a_touched_file_is_read_once_and_then_known(data: DataDir, source: Path) -> None:
    run(data, source)
    os.utime(source / "pump.md", (LONG_AGO + 9, LONG_AGO + 9))
    assert counts(run(data, source)) == {"unchanged": 2}
    with (source / "pump.md").open("r+b") as file:
        file.write(PUMP.replace("26", "27").encode())
    os.utime(source / "pump.md", (LONG_AGO + 9, LONG_AGO + 9))
    assert counts(run(data, source)) == {"unchanged": 2}


def test_a_file_changed_just_now_is_always_read(data: DataDir, source: Path) -> None:
    path = source / "fresh.md"
    path.write_text("# Fresh\n\nOne two.\n")
    status = path.stat()
    run(data, source)
    path.write_text("# Fresh\n\nOne six.\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(run(data, source)) == {"changed": 1, "unchanged": 2, "embedded": 1}


def test_nothing_is_removed_by_an_empty_a_missing_or_a_wrong_folder(data: DataDir, source: Path) -> None:
    run(data, source)
    empty, wrong = source.parent / "empty", source.parent / "wrong"
    empty.mkdir()
    wrong.mkdir()
    write(wrong / "other.md", "# Other\n\nText.\n")
    with pytest.raises(InputError, match=r"found none.*allow_empty=true"):
        run(data, empty)
    with pytest.raises(NotFound, match="found nothing at"):
        run(data, source.parent / "missing")
    with pytest.raises(InputError, match=r"wanted some of the store's 2 documents .* allow_empty=true"):
        run(data, wrong)
    with pytest.raises(InputError, match=r"wanted a folder, found the file .* action=ingest"):
        run(data, source / "pump.md")
    assert list_names(data) == ["deep/duck.md", "pump.md"]
    assert counts(run(data, wrong, allow_empty=True)) == {"added": 1, "removed": 2, "embedded": 1}
    assert counts(run(data, source.parent / "missing", allow_empty=True)) == {"removed": 1}
    assert list_names(data) == []


def test_ingest_adds_and_never_removes(data: DataDir, source: Path) -> None:
    run(data, source)
    (source / "pump.md").unlink()
    assert counts(run(data, source, is_additive=True)) == {"unchanged": 1}
    assert list_names(data) == ["deep/duck.md", "pump.md"]


def test_a_failure_is_told_again_without_parsing_and_retried_when_asked(data: DataDir, source: Path) -> None:
    write(source / "bad.pdf", "no pdf")
    first = run(data, source)
    assert counts(first) == {"added": 2, "failed": 1, "embedded": 3}
    again = run(data, source)
    assert counts(again) == {"unchanged": 2, "failed": 1}
    assert again.failures == first.failures
    engine = open_database(data.database)
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE documents SET error = 'all is well' WHERE status = 'failed'"))
    engine.dispose()
    assert run(data, source).failures == first.failures  # a damaged row is not believed: the file is read again
    engine = open_database(data.database)
    (state, *_) = list_documents(engine, find_store(engine, "acme"))
    assert (state.file, state.status, state.chunks) == ("bad.pdf", "failed", 0)
    assert state.last_error == {"code": first.failures[0].code, "message": first.failures[0].reason}
    engine.dispose()
    assert run(data, source, verify=True).failures == first.failures
    (source / "bad.pdf").unlink()
    assert counts(run(data, source)) == {"unchanged": 2}
    assert "bad.pdf" not in list_names(data)


def test_a_document_that_a_killed_process_left_is_made_again(data: DataDir, source: Path) -> None:
    class Killed(Exception):
        pass

    class Killer(HashEmbedder):
        def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
            raise Killed

    with pytest.raises(Killed):
        run(data, source, Killer())
    (status,) = list_stores(open_database(data.database))
    assert (status.files, status.in_progress, status.failed) == (0, 2, 0)
    (source / "deep" / "duck.md").unlink()
    assert counts(run(data, source)) == {"added": 1, "embedded": 2}
    (status,) = list_stores(open_database(data.database))
    assert (status.files, status.in_progress) == (1, 0)


def test_a_document_or_a_store_is_deleted(data: DataDir, source: Path) -> None:
    run(data, source)
    with pytest.raises(NotFound, match="files=true"):
        delete(data, "acme", "none.md")
    assert delete(data, "acme", "pump.md") == 1
    searcher = Searcher(data, make_embedder=HashEmbedder)
    assert {hit.file for hit in searcher.search(["acme"], "pump warranty", k=10).hits} == {"deep/duck.md"}
    assert delete(data, "acme") == 1
    with pytest.raises(NotFound, match="there are no stores yet"):
        searcher.search(["acme"], "pump")
    searcher.close()
    with pytest.raises(NotFound):
        delete(data, "acme")
    assert [path for path in data.indexes.rglob("*") if path.is_dir()] == []
