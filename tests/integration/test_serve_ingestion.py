"""What the ingestion worker leaves of files that are called off, attached again or expire while it is on them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from core.config import PathsConfig
from core.errors import Conflict
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ChunkingMode, ParsingConfig
from retrieval.database import open_database, write_transaction
from retrieval.documents import KnownDocument, read_documents
from retrieval.ingest import Tools, ingest_files
from retrieval.source import list_files
from retrieval.store import find_store
from retrieval.uploads import Upload, list_uploads, save_upload
from serve import ingestion
from serve.attached_files import Attachment, attach_files, cancel_batch, detach_everywhere
from serve.ingestion import IngestionWorker
from serve.preflight import ServeConfig
from serve.program import open_archive
from serve.vector_stores import VectorStore, create_vector_store
from tests.fakes.hash_embedder import HashEmbedder

OWNER = "me"
NAME = "warranty.md"


class Killed(BaseException):
    """The worker's process ends here."""


@dataclass(frozen=True)
class Place:
    """A data directory with a store and an upload."""

    data: DataDir
    engine: Engine
    store: VectorStore
    upload: Upload

    def attach(self, chunking: ChunkingConfig | None = None) -> str:
        """Attach the upload; return the batch's id."""
        attachment = Attachment(self.upload, {}, chunking or ChunkingConfig())
        batch = attach_files(self.engine, self.store.id, OWNER, [attachment], is_batch=True)
        assert batch is not None
        return batch

    def start_worker(self, mode: ChunkingMode = ChunkingMode.auto) -> IngestionWorker:
        """Return a worker that is started by hand."""
        return IngestionWorker(self.data, self.engine, HashEmbedder, ParsingConfig(workers=1), mode)

    def read_documents(self) -> Mapping[str, KnownDocument]:
        """Return what the store holds."""
        return read_documents(self.engine, find_store(self.engine, self.store.id))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    data = DataDir(tmp_path)
    engine = open_database(data.database)
    store = create_vector_store(engine, HashEmbedder().identity, OWNER, {"title": "handbook"})
    content = [b"# Warranty\n\nThe pump has a warranty of 26 months.\n"]
    upload = save_upload(engine, data, content, owner=OWNER, name=NAME, purpose="assistants", max_bytes=1000)
    return Place(data, engine, store, upload)


def once_made(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Let something happen once, when the documents are made and the rows do not say so yet."""
    todo = [happen]

    def reach(name: str) -> None:
        if name == "attachments.made" and todo:
            todo.pop()()

    monkeypatch.setattr(ingestion, "reach", reach)


def test_a_file_cancelled_before_a_kill_is_not_found_after_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel_and_die() -> None:
        cancel_batch(place.engine, place.store, batch)
        raise Killed

    batch = place.attach()
    once_made(monkeypatch, cancel_and_die)
    with pytest.raises(Killed):
        place.start_worker().work_once()
    assert NAME in place.read_documents()
    assert not place.start_worker().work_once()
    assert not place.read_documents()


def test_a_document_of_the_command_line_under_a_cancelled_files_name_stays(place: Place, tmp_path: Path) -> None:
    cancel_batch(place.engine, place.store, place.attach())
    source = tmp_path / "source"
    source.mkdir()
    (source / NAME).write_text("The pump has a warranty of 30 months.\n")
    tools = Tools(HashEmbedder(), ChunkingConfig(), ParsingConfig(workers=1))
    ingest_files(place.data, place.store.id, list_files(source, place.data), tools)
    assert not place.start_worker().work_once()
    assert NAME in place.read_documents()


def test_a_file_attached_again_while_it_is_made_is_cut_as_was_said_last(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.attach(ChunkingConfig(240, 32))
    once_made(monkeypatch, lambda: place.attach(ChunkingConfig(100, 10)))
    worker = place.start_worker()
    assert worker.work_once()
    assert worker.work_once()
    assert not worker.work_once()
    assert place.read_documents()[NAME].recipe.endswith(":100:10")


def test_files_are_cut_as_the_gateway_is_configured(place: Place) -> None:
    place.attach(ChunkingConfig(100, 10))
    assert place.start_worker(ChunkingMode.static).work_once()
    assert place.read_documents()[NAME].recipe.endswith(":static:100:10")


def test_what_stores_made_of_an_expired_file_goes_whatever_comes_between(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_engine: Engine, _file: str) -> None:
        raise Conflict("another process has been writing")

    place.attach()
    assert place.start_worker().work_once()
    with write_transaction(place.engine) as connection:
        connection.execute(text("UPDATE files SET expires_at = :now"), {"now": int(time.time())})
    with open_archive(ServeConfig(PathsConfig(str(place.data.root))), place.data):
        pass  # a gateway starts and stops
    worker = place.start_worker()
    monkeypatch.setattr(ingestion, "detach_everywhere", refuse)
    with pytest.raises(Conflict):
        worker.tidy()
    monkeypatch.setattr(ingestion, "detach_everywhere", detach_everywhere)
    worker.tidy()
    assert not place.read_documents()
    assert not list_uploads(place.engine)
    assert not (place.data.files / place.upload.id).exists()
