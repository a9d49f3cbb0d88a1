"""Documents are committed whole, replaced whole, never half; ids are never used twice; damage is seen."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from core.errors import ConfigError, Conflict, ContractError, InvalidFile, NotFound
from retrieval import store
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.documents import read_documents
from retrieval.seal import hash_chunk
from retrieval.status import list_stores
from retrieval.store import DocumentStatus, NewChunk, NewDocument, Store
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans

EMBEDDER = EmbedderIdentity("hash", 4, "abc")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path / "loam.db")


@pytest.fixture
def acme(engine: Engine) -> Store:
    return store.make_store(engine, "acme", EMBEDDER)


def make_document(name: str, *texts: str, sha256: str = "1", windows: int = 1, spans: int = 2) -> NewDocument:
    """A document with one chunk for each text."""
    chunks, offset = [], 0
    for number, chunk_text in enumerate(texts):
        vectors = ChunkVectors(np.full((windows, 4), 0.5, dtype=np.float32), np.full((spans, 4), 127, dtype=np.int8))
        chunks.append(NewChunk(offset, offset + len(chunk_text), number + 1, "A > B", chunk_text, vectors))
        offset += len(chunk_text)
    return NewDocument(name, sha256, "1", 10, "".join(texts), tuple(chunks))


def count(engine: Engine, table: str) -> int:
    with read_transaction(engine) as connection:
        return int(connection.execute(text(f"SELECT COUNT(*) FROM {table}")).scalar_one())


def test_a_committed_document_is_read_back(engine: Engine, acme: Store) -> None:
    assert store.commit_documents(engine, acme, [make_document("a.md", "one", "two", windows=2)]) == 1
    now, rows = store.read_chunks(engine, acme)
    assert now.generation == 1
    assert [(row.heading, row.text, row.vectors.windows.shape) for row in rows] == [
        ("A > B", "one", (2, 4)),
        ("A > B", "two", (2, 4)),
    ]
    passage = store.read_passages(engine, [rows[1].id])[rows[1].id]
    assert (passage.store, passage.file, passage.page, passage.start, passage.end) == ("acme", "a.md", 2, 3, 6)
    assert store.parse_chunk_id(passage.chunk_id) == rows[1].id
    (status,) = list_stores(engine)
    assert (status.store, status.files, status.failed, status.chunks, status.generation) == ("acme", 1, 0, 2, 1)


def test_a_new_version_replaces_the_old_one_and_its_ids(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one", "two")])
    _, before = store.read_chunks(engine, acme)
    assert store.commit_documents(engine, acme, [make_document("a.md", "three", sha256="2")]) == 2
    _, after = store.read_chunks(engine, acme)
    assert [row.text for row in after] == ["three"]
    assert after[0].id > max(row.id for row in before)
    assert store.read_passages(engine, [row.id for row in before]) == {}
    known = read_documents(engine, acme)["a.md"]
    assert (known.sha256, known.recipe, known.status) == ("2", "1", DocumentStatus.completed)
    assert (count(engine, "documents"), count(engine, "chunks")) == (1, 1)


def test_ids_are_not_used_again_after_everything_was_removed(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one")])
    _, (row,) = store.read_chunks(engine, acme)
    store.commit_documents(engine, acme, [make_document("a.md")])
    store.commit_documents(engine, acme, [make_document("a.md", "two")])
    assert store.read_chunks(engine, acme)[1][0].id > row.id


def test_a_commit_that_fails_leaves_the_old_version(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one")])
    bad = make_document("a.md", "two", "three", sha256="2")
    whole, spans = np.zeros((1, 4), dtype=np.float32), no_spans(4)
    for vectors in (
        ChunkVectors(np.zeros((1, 3), dtype=np.float32), spans),
        ChunkVectors(whole[:0], spans),
        ChunkVectors(whole, no_spans(3)),
        ChunkVectors(whole, whole),  # type: ignore[arg-type]
    ):
        wrong = NewChunk(0, 1, None, None, "x", vectors)
        with pytest.raises(ValueError, match="wanted"):
            store.commit_documents(engine, acme, [NewDocument("a.md", "2", "1", 1, "x", (*bad.chunks, wrong))])
    now, rows = store.read_chunks(engine, acme)
    assert now.generation == 1
    assert [row.text for row in rows] == ["one"]


def test_a_failure_is_recorded_and_does_not_hide_an_earlier_version(engine: Engine, acme: Store) -> None:
    broken = NewDocument("b.pdf", "9", "1", 5, "", ())
    assert store.commit_failure(engine, acme, broken, InvalidFile("damaged")) is False
    assert store.commit_failure(engine, acme, broken, InvalidFile("damaged")) is False
    store.commit_documents(engine, acme, [make_document("a.md", "one")])
    assert store.commit_failure(engine, acme, make_document("a.md"), InvalidFile("damaged")) is True
    (status,) = list_stores(engine)
    assert (status.files, status.failed, status.chunks) == (1, 1, 1)
    assert read_documents(engine, acme)["b.pdf"].status is DocumentStatus.failed
    store.commit_documents(engine, acme, [make_document("b.pdf", "mended")])
    assert (list_stores(engine)[0].files, list_stores(engine)[0].failed) == (2, 0)


def test_vectors_are_found_again_by_what_the_chunk_says(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one", "two")])
    wanted = {hash_chunk("A > B", "one"), hash_chunk("A > B", "two")}
    known = store.read_chunk_vectors(engine, acme, [*wanted, hash_chunk(None, "three")])
    assert set(known) == wanted
    assert {vectors.spans.shape for vectors in known.values()} == {(2, 4)}
    store.commit_documents(engine, acme, [make_document("b.md", "bare", spans=0)])
    bare = [hash_chunk("A > B", "bare")]
    assert store.read_chunk_vectors(engine, acme, bare)[bare[0]].spans.shape == (0, 4)
    assert store.read_chunk_vectors(engine, acme, bare, with_spans=True) == {}
    assert hash_chunk(None, "A") != hash_chunk("A", "")


def test_another_embedder_is_refused_with_what_to_do(engine: Engine, acme: Store) -> None:
    assert store.make_store(engine, "acme", EMBEDDER) == acme
    for other in (EmbedderIdentity("hash", 4, "def"), EmbedderIdentity("other", 8, "abc")):
        with pytest.raises(Conflict, match=r"embedder\.name=hash"):
            store.make_store(engine, "acme", other)


def test_a_store_keeps_the_language_that_it_was_made_in(engine: Engine, acme: Store) -> None:
    made = store.make_store(engine, "haus", EMBEDDER, "german")
    assert (acme.language, made.language) == ("english", "german")
    assert store.make_store(engine, "haus", EMBEDDER) == made
    with pytest.raises(Conflict, match="stemmed as german, found language=french"):
        store.make_store(engine, "haus", EMBEDDER, "french")


def test_an_unknown_store_is_told_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(NotFound, match="there are no stores yet"):
        store.find_store(engine, "acme")
    store.make_store(engine, "beta", EMBEDDER)
    store.make_store(engine, "alpha", EMBEDDER)
    with pytest.raises(NotFound, match="wanted one of alpha, beta"):
        store.find_store(engine, "acme")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(ConfigError, match="store: wanted"):
        store.make_store(engine, name, EMBEDDER)


def test_text_that_was_changed_behind_our_back_is_never_returned(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one", "two")])
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE chunks SET text = 'won' WHERE text = 'one'"))
    _, good = 0, store.read_passages(engine, [2])
    assert good[2].text == "two"
    with pytest.raises(ContractError, match="chunk-1: its text is not what was stored"):
        store.read_passages(engine, [1, 2])
    with pytest.raises(ContractError, match="chunk-1"):
        store.read_chunks(engine, acme)


def test_vectors_of_a_wrong_length_are_refused(engine: Engine, acme: Store) -> None:
    store.commit_documents(engine, acme, [make_document("a.md", "one")])
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE chunks SET embeddings = x'00ff', embeddings_sha256 = NULL"))
    with pytest.raises(ContractError, match="wanted rows of 16 bytes, found 2"):
        store.read_chunks(engine, acme)


@pytest.mark.parametrize("chunk_id", ["", "17", "chunk-", "chunk-x", "chunk--1", "chunk-١", "chunk-" + "9" * 40])
def test_what_is_no_chunk_id_is_not_found(chunk_id: str) -> None:
    with pytest.raises(NotFound):
        store.parse_chunk_id(chunk_id)
