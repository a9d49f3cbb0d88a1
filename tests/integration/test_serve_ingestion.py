"""What the ingestion worker leaves of files that are called off, attached again or expire while it is on them."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from core.config import PathsConfig
from core.errors import Conflict
from core.layout import DataDir
from retrieval import ingest
from retrieval.config import ChunkingConfig, ChunkingMode, ParsingConfig
from retrieval.database import open_database, write_transaction
from retrieval.documents import KnownDocument, read_documents, rename_documents
from retrieval.ingest import Tools, ingest_files, lock_store
from retrieval.reembed import reembed
from retrieval.source import FileStamp, list_files
from retrieval.store import find_store
from retrieval.uploads import Upload, list_uploads, save_upload
from serve import ingestion
from serve.attached_files import Attachment, attach_files, cancel_batch, detach_everywhere, find_attached, list_attached
from serve.ingestion import IngestionWorker
from serve.preflight import ServeConfig
from serve.program import open_archive
from serve.vector_stores import VectorStore, create_vector_store, delete_vector_store
from serve.windows import Window
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

    def attach(self, chunking: ChunkingConfig | None = None, store: VectorStore | None = None) -> str:
        """Attach the upload, to another store where one is given; return the batch's id."""
        attachment = Attachment(self.upload, {}, chunking or ChunkingConfig())
        batch = attach_files(self.engine, (store or self.store).id, OWNER, [attachment], is_batch=True)
        assert batch is not None
        return batch

    def add_upload(self, name: str) -> Upload:
        """Upload another file."""
        content = [f"# {name}\n\nThe pump of {name} has a warranty.\n".encode()]
        return save_upload(
            self.engine, self.data, content, owner=OWNER, name=name, purpose="assistants", max_bytes=1000
        )

    def make_store(self, embedder: HashEmbedder | None = None) -> VectorStore:
        """Make another store."""
        return create_vector_store(self.engine, (embedder or HashEmbedder()).identity, OWNER, {"title": "other"})

    def read_status(self, store: VectorStore) -> str:
        """Return the status of the upload in a store."""
        return find_attached(self.engine, store, self.upload.id).status

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


@pytest.mark.parametrize(
    ("when", "is_readable"), [("store.made", True), ("documents.begun", True), ("documents.begun", False)]
)
def test_a_store_that_is_deleted_while_its_files_are_made_is_no_fault(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str, is_readable: bool
) -> None:
    def reach(name: str) -> None:
        if name == when:
            delete_vector_store(place.engine, place.store.id, OWNER)
            if not is_readable:
                (place.data.files / place.upload.id).unlink()

    place.attach()
    monkeypatch.setattr(ingest, "reach", reach)
    assert place.start_worker().work_once()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not place.start_worker().work_once()


def test_an_upload_that_is_lost_while_it_is_read_fails_and_tells_no_path(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.attach()
    monkeypatch.setattr(ingest, "reach", lambda _name: (place.data.files / place.upload.id).unlink(missing_ok=True))
    assert place.start_worker().work_once()
    error = find_attached(place.engine, place.store, place.upload.id).error
    assert error is not None
    assert error["message"].startswith(f"Could not read {NAME}: ")
    assert str(place.data.root) not in error["message"]


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


def test_what_the_command_line_makes_of_an_attached_files_document_is_listed(place: Place) -> None:
    def list_ids() -> list[str]:
        page, _ = list_attached(place.engine, place.store, Window(None, None, 10, True))
        return [file.id for file in page]

    place.attach()
    assert place.start_worker().work_once()
    assert list_ids() == [place.upload.id]
    known = place.read_documents()[NAME]
    rename_documents(place.engine, [(known, "moved.md", FileStamp(1, 2, 3))])
    assert sorted(list_ids()) == sorted([place.upload.id, f"doc-{known.id}"])


def test_a_store_that_another_process_changes_holds_up_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "RETRY_S", 600.0)
    others = [place.make_store() for _ in range(2)]
    worker = place.start_worker()
    with lock_store(place.data, place.store.id):
        for store in (place.store, *others):
            place.attach(store=store)
        assert [worker.work_once() for _ in range(4)] == [True, True, True, False]  # passed over, done, done, nothing
        assert [place.read_status(store) for store in (place.store, *others)] == ["in_progress", *["completed"] * 2]
        place.attach(store=others[0])
        assert [worker.work_once() for _ in range(2)] == [True, False]  # one that waits is not asked before its time


def test_a_store_with_many_files_lets_those_of_others_through(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "GROUP_FILES", 2)
    others = [place.make_store() for _ in range(2)]
    for number in range(3):
        upload = place.add_upload(f"{number}.md")
        attach_files(place.engine, place.store.id, OWNER, [Attachment(upload, {}, ChunkingConfig())], is_batch=False)
    for store in others:
        place.attach(store=store)
    worker = place.start_worker()
    done = []
    while worker.work_once():
        done.append([len(place.read_documents()), *(place.read_status(store) for store in others)])
    waits, made = "in_progress", "completed"
    assert done == [[2, waits, waits], [2, made, waits], [2, made, made], [3, made, made]]


def test_files_that_waited_for_another_process_go_on_by_themselves(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ingestion, "RETRY_S", 0.1)
    caplog.set_level("INFO", logger=ingestion.logger.name)
    other = place.make_store()
    worker = place.start_worker()
    with lock_store(place.data, place.store.id):
        for store in (place.store, other):
            place.attach(store=store)
        worker.start()
        wait_for(lambda: place.read_status(other) == "completed")
        time.sleep(0.3)  # it is tried again meanwhile
    wait_for(lambda: place.read_status(place.store) == "completed")
    worker.stop(30)
    said = [record.message for record in caplog.records if place.store.id in record.message]
    assert len(said) == 2, "each is said once"
    assert f"process {os.getpid()} is changing it" in said[0]
    assert said[1].endswith("go on")


def test_files_wait_until_their_store_has_the_embedders_vectors(place: Place) -> None:
    old = place.make_store(HashEmbedder(name="before"))
    for store in (old, place.store):
        place.attach(store=store)
    worker = place.start_worker()
    assert [worker.work_once() for _ in range(3)] == [True, True, False]
    assert [place.read_status(store) for store in (old, place.store)] == ["in_progress", "completed"]
    reembed(place.data, old.id, HashEmbedder())
    assert place.start_worker().work_once()
    assert place.read_status(old) == "completed"


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
