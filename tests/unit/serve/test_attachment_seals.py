"""serve.attachment_seals: a changed row of an attached file is refused, and no later change seals it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from core.errors import ContractError, NotFound
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.uploads import Upload, save_upload
from serve.attached_files import (
    Attachment,
    attach_files,
    cancel_batch,
    detach_everywhere,
    detach_file,
    find_attached,
    list_attached,
    set_file_attributes,
)
from serve.attachment_seals import is_file_whole
from serve.ingestion import IngestionWorker
from serve.vector_stores import VectorStore, create_vector_store
from serve.windows import Window
from tests.fakes.hash_embedder import HashEmbedder

ALL = Window(after=None, before=None, limit=10, is_rising=True)
CHUNKING = ChunkingConfig(240, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A store with one file that could be read and one that could not."""

    data: DataDir
    engine: Engine
    store: VectorStore
    good: Upload
    bad: Upload

    def attach(self, *uploads: Upload, is_batch: bool = False) -> str | None:
        attachments = [Attachment(upload, {"team": "sales"}, CHUNKING) for upload in uploads]
        return attach_files(self.engine, self.store.id, "a", attachments, is_batch=is_batch)

    def work(self) -> None:
        assert IngestionWorker(self.data, self.engine, HashEmbedder, ParsingConfig(workers=1)).work_once()

    def damage(self, change: str, upload: Upload) -> None:
        with write_transaction(self.engine) as connection:
            statement = text(f"UPDATE vector_store_files SET {change} WHERE file_id = :id")
            connection.execute(statement, {"id": upload.id})

    def are_sealed(self) -> list[bool]:
        with read_transaction(self.engine) as connection:
            rows = connection.execute(text("SELECT * FROM vector_store_files ORDER BY number")).mappings().all()
        return [row["seal"] is not None and is_file_whole(row) for row in rows]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    data = DataDir(tmp_path)
    engine = open_database(data.database)
    contents = {"good.md": b"The pump has a warranty of 26 months.", "bad.pdf": b"no PDF at all"}
    good, bad = (
        save_upload(engine, data, [content], owner="a", name=name, purpose="assistants", max_bytes=100)
        for name, content in contents.items()
    )
    place = Place(data, engine, create_vector_store(engine, HashEmbedder().identity, "a", {}), good, bad)
    place.attach(good, bad)
    place.work()
    yield place
    engine.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "error = 'All is well.'",
        "error = CAST(x'ff' AS TEXT)",
        "error_code = 'unsupported_file'",
        "status = 'completed'",
        'attributes = \'{"team": "lies"}\'',
        "document = 'other.pdf'",
        "batch_id = 'vsfb_1'",
        "max_tokens = 241",
        "overlap_tokens = 1",
        "created_at = 1",
        "number = 9",
        "seal = 'x'",
    ],
)
def test_a_changed_row_is_not_told(place: Place, change: str) -> None:
    found = find_attached(place.engine, place.store, place.bad.id)
    assert (found.status, found.error is not None) == ("failed", True)
    place.damage(change, place.bad)
    with pytest.raises(ContractError, match=rf"file '{place.bad.id}': its row .*doctor\.py"):
        find_attached(place.engine, place.store, place.bad.id)
    with pytest.raises(ContractError, match=place.bad.id):
        list_attached(place.engine, place.store, ALL)
    assert find_attached(place.engine, place.store, place.good.id).status == "completed"


def test_changes_that_were_meant_are_sealed(place: Place) -> None:
    assert place.are_sealed() == [True, True]
    set_file_attributes(place.engine, place.store, place.good.id, {"team": "support"})
    assert place.are_sealed() == [True, True]
    batch = place.attach(place.good, place.bad, is_batch=True)
    assert place.are_sealed() == [True, True]
    cancel_batch(place.engine, place.store, str(batch))
    assert place.are_sealed() == [True, True]
    place.attach(place.bad)
    detach_everywhere(place.engine, place.bad.id)  # waits: the worker removes it
    detach_file(place.engine, place.store, place.good.id)
    assert place.are_sealed() == [True]


def test_a_change_that_was_meant_does_not_seal_damage(place: Place) -> None:
    batch = place.attach(place.good, place.bad, is_batch=True)
    place.damage("error = 'All is well.'", place.bad)
    cancel_batch(place.engine, place.store, str(batch))
    with pytest.raises(ContractError, match=place.bad.id):
        set_file_attributes(place.engine, place.store, place.bad.id, {})
    assert place.are_sealed() == [True, False]
    with pytest.raises(ContractError, match="take the file out of the store and attach it again"):
        place.attach(place.bad)
    detach_file(place.engine, place.store, place.bad.id)
    place.attach(place.bad)
    place.work()
    assert find_attached(place.engine, place.store, place.bad.id).status == "failed"


@pytest.mark.parametrize("change", ["document = 'lies.md'", "max_tokens = 0", "attributes = CAST(x'ff' AS TEXT)"])
def test_a_damaged_row_of_the_queue_becomes_no_document_and_stops_nothing(place: Place, change: str) -> None:
    detach_file(place.engine, place.store, place.good.id)
    place.attach(place.good)
    place.damage(change, place.good)
    place.work()
    with pytest.raises(ContractError):
        find_attached(place.engine, place.store, place.good.id)
    with read_transaction(place.engine) as connection:
        assert connection.execute(text("SELECT name FROM documents WHERE status = 'completed'")).all() == []
        states = connection.execute(text("SELECT status FROM vector_store_files ORDER BY number")).scalars().all()
    assert states == ["failed", "failed"]
    detach_file(place.engine, place.store, place.good.id)
    assert len(place.are_sealed()) == 1


def test_a_row_of_an_earlier_version_is_told_and_sealed_by_the_next_change(place: Place) -> None:
    place.damage("seal = NULL", place.good)
    assert find_attached(place.engine, place.store, place.good.id).attributes == {"team": "sales"}
    set_file_attributes(place.engine, place.store, place.good.id, {"team": "support"})
    assert place.are_sealed() == [True, True]
    with pytest.raises(NotFound):
        find_attached(place.engine, place.store, "file-none")
