"""Indexes in memory follow the database: the same one while nothing changes, a new one after, at bounded cost."""

import gc
import time
import weakref
from pathlib import Path

import pytest
from sqlalchemy import Engine

from core.errors import Conflict, NotFound
from core.layout import DataDir
from retrieval import indexes
from retrieval.config import IndexDevice
from retrieval.database import open_database
from retrieval.documents import delete_store
from retrieval.embedding import embed_passages
from retrieval.indexes import StoreIndexes, measure_vectors
from retrieval.snapshot import build_index, save_snapshot
from retrieval.store import (
    NewChunk,
    NewDocument,
    commit_documents,
    find_store,
    make_store,
    read_chunks,
)
from retrieval.vectors import EmbedderIdentity
from tests.fakes.hash_embedder import HashEmbedder

EMBEDDER = HashEmbedder()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path)


@pytest.fixture
def engine(data: DataDir) -> Engine:
    engine = open_database(data.database)
    make_store(engine, "acme", EMBEDDER.identity)
    return engine


def add(engine: Engine, name: str) -> None:
    chunk = NewChunk(0, len(name), None, None, name, embed_passages([(None, name)], EMBEDDER)[0])
    commit_documents(engine, find_store(engine, "acme"), [NewDocument(name, "1", "1", 1, name, (chunk,))])


def test_every_window_of_a_chunk_takes_memory(engine: Engine) -> None:
    assert measure_vectors(engine) == 0
    add(engine, "short")
    add(engine, "a long word " * 400)
    _, rows = read_chunks(engine, find_store(engine, "acme"))
    windows = [row.vectors.windows for row in rows]
    assert len(windows[0]) < len(windows[1])
    assert measure_vectors(engine) == sum(vectors.nbytes for vectors in windows)


def test_an_unchanged_store_keeps_its_index(engine: Engine, data: DataDir) -> None:
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    add(engine, "a")
    assert followed.read("acme", EMBEDDER.identity) is followed.read("acme", EMBEDDER.identity)


def test_a_changed_store_has_a_new_index(engine: Engine, data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "REFRESH_SHARE", 1e9)
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    for count, name in enumerate("abc", start=1):
        add(engine, name)
        assert len(followed.read("acme", EMBEDDER.identity).numbers) == count


def test_a_store_that_keeps_changing_costs_a_bounded_share(
    engine: Engine, data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "REFRESH_SHARE", 0.0)
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    add(engine, "a")
    first = followed.read("acme", EMBEDDER.identity)
    add(engine, "b")
    assert followed.read("acme", EMBEDDER.identity) is first
    # A saved snapshot costs little, so it is taken at once.
    save_snapshot(build_index(engine, find_store(engine, "acme"), IndexDevice.cpu), data)
    assert len(followed.read("acme", EMBEDDER.identity).numbers) == 2


def test_the_index_of_a_deleted_store_is_freed(engine: Engine, data: DataDir) -> None:
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    make_store(engine, "other", EMBEDDER.identity)
    add(engine, "a")
    index = weakref.ref(followed.read("acme", EMBEDDER.identity).lexical.runs[0].lengths)
    delete_store(engine, find_store(engine, "acme"))
    followed.read("other", EMBEDDER.identity)
    gc.collect()
    assert index() is None
    with pytest.raises(NotFound):
        followed.read("acme", EMBEDDER.identity)


def test_after_a_while_the_index_is_made_anew(engine: Engine, data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    followed.read("acme", EMBEDDER.identity)
    add(engine, "a")
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert len(followed.read("acme", EMBEDDER.identity).numbers) == 1


def test_another_embedder_or_store_is_refused(engine: Engine, data: DataDir) -> None:
    followed = StoreIndexes(engine, data, IndexDevice.cpu)
    with pytest.raises(Conflict):
        followed.read("acme", EmbedderIdentity("other", 8, "x"))
    with pytest.raises(NotFound, match="wanted one of acme"):
        followed.read("other", EMBEDDER.identity)
