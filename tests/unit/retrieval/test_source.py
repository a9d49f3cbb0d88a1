"""What a source's files are called: every name can be stored, shown and told from the others."""

import os
from pathlib import Path

import pytest

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.ingest import ingest
from retrieval.source import list_files, list_folder
from retrieval.store import find_store
from retrieval.sync import delete, sync
from tests.fakes.hash_embedder import HashEmbedder

ODD_NAMES = [b"caf\xe9.md", b"caf\\xe9.md", "café.md".encode(), b"line\nbreak.md", b"\x1b[2Jwipe.md", b"\xff\xfe.md"]
ODD_NAMES += [
    "gpj\u202e.md".encode(),
    "sep\u2028.md".encode(),
    b"trailing.md ",
    b"CON.md",
    b"'; DROP TABLE documents.md",
]
ODD_NAMES += [b"n" * 252 + b".md", b"%2e%2e%2fetc.md", b"dots...md", b"{braces}[tags].md"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(f"# Note\n\nWord{number} of a file.")
    inner = Path(os.fsdecode(os.fsencode(folder) + b"/fold\xe9r\n"))
    inner.mkdir()
    (inner / "deep.md").write_text("Deep words.")
    return folder


def test_names_are_one_visible_line_and_differ(source: Path, tmp_path: Path) -> None:
    files = list_files(source, DataDir(tmp_path / "data"))
    names = [file.name for file in files]
    assert len(set(names)) == len(ODD_NAMES) + 1
    assert all(name.isprintable() for name in names)
    assert {"caf\\xe9.md", "caf\\x5cxe9.md", "café.md", "line\\x0abreak.md", "fold\\xe9r\\x0a/deep.md"} <= set(names)
    assert all(file.path.is_file() for file in files)


def test_a_single_file_is_named_in_the_same_way(source: Path, tmp_path: Path) -> None:
    (file,) = list_files(Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.md")), DataDir(tmp_path / "data"))
    assert file.name == "caf\\xe9.md"


def test_odd_names_are_ingested_synced_and_deleted(source: Path, tmp_path: Path) -> None:
    data, embedder = DataDir(tmp_path / "data"), HashEmbedder()
    parsing = ParsingConfig(workers=1)
    options = {"embedder": embedder, "chunking": ChunkingConfig(60, 16), "parsing": parsing}
    report = ingest(data, "notes", source, **options)  # type: ignore[arg-type]
    names = {file.name for file in list_folder(source, data)}
    engine = open_database(data.database)
    states = list_documents(engine, find_store(engine, "notes"))
    assert {state.file for state in states} == names
    unread = {state.file for state in states if state.status != "completed"}
    assert unread == {"trailing.md "}
    assert len(report.failures) == len(unread)
    again = sync(data, "notes", source, **options)  # type: ignore[arg-type]
    assert (again.added, again.removed, again.renamed) == (0, 0, 0)
    for name in sorted(names):
        assert delete(data, "notes", name) == 1
    assert list_documents(engine, find_store(engine, "notes")) == []
