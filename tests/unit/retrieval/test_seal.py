"""Seals: whatever changes in the row of a chunk or its document is seen when it is read, and refused by its name."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from core.errors import ContractError, InvalidFile, NotFound
from core.layout import sha256_bytes
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.documents import (
    list_documents,
    read_documents,
    read_failures,
    read_text,
    rename_documents,
    stamp_documents,
)
from retrieval.seal import DOCUMENT_COLUMNS, DOCUMENT_SEALED_BEFORE, SEALED, hash_chunk
from retrieval.source import FileStamp
from retrieval.store import (
    NewChunk,
    NewDocument,
    commit_documents,
    commit_failure,
    find_store,
    make_store,
    read_chunk_vectors,
    read_chunks,
    read_passages,
)
from retrieval.vectors import ChunkVectors, EmbedderIdentity
from tests.fakes.attributes import set_attributes


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(tmp_path / "loam.db")
    store = make_store(engine, "acme", EmbedderIdentity("hash", 4, "abc"))
    vectors = ChunkVectors(np.ones((2, 4), dtype=np.float32), np.ones((3, 4), dtype=np.int8))
    chunk = NewChunk(0, 3, 1, "A", "one", vectors)
    commit_documents(engine, store, [NewDocument("a.md", "x", "1", 3, "one", (chunk,))])
    commit_documents(engine, store, [NewDocument("b.md", "y", "1", 3, "two", ())])
    return engine


def damage(engine: Engine, change: str, table: str = "chunks") -> None:
    with write_transaction(engine) as connection:
        connection.execute(text(f"UPDATE {table} SET {change} WHERE id = 1"))


@pytest.mark.parametrize(
    "change",
    [
        "text = 'two'",
        "heading = 'B'",
        "page = 2",
        "page = NULL",
        "start_offset = 1",
        "end_offset = 4",
        "ordinal = 1",
        "document_id = 2",
        "sha256 = 'x'",
        "embeddings_sha256 = 'x'",
        "seal = 'x'",
    ],
)
def test_a_changed_chunk_is_not_quoted(engine: Engine, change: str) -> None:
    assert read_passages(engine, [1])[1].text == "one"
    damage(engine, change)
    with pytest.raises(ContractError, match=r"chunk-1: its .*doctor\.py"):
        read_passages(engine, [1])


@pytest.mark.parametrize("change", ["embeddings = zeroblob(32)", "spans = zeroblob(12)", "spans = NULL", "spans = 'x'"])
def test_changed_vectors_make_no_index(engine: Engine, change: str) -> None:
    damage(engine, change)
    with pytest.raises(ContractError, match="chunk-1: its vectors"):
        read_chunks(engine, find_store(engine, "acme"))


@pytest.mark.parametrize(
    "change",
    [
        "name = 'c.md'",
        "sha256 = 'z'",
        "text_sha256 = 'z'",
        "stated_attributes = '[]'",
        "set_attributes = '[]'",
        "recipe = '2'",
        "size_bytes = 4",
        "modified_ns = 1",
        "inode = 1",
        "status = 'failed'",
        "error_code = 'x'",
        "error = 'x'",
        "updated_at = 1",
        "seal = 'x'",
    ],
)
def test_no_passage_of_a_changed_document_is_quoted(engine: Engine, change: str) -> None:
    damage(engine, change, "documents")
    with pytest.raises(ContractError, match=r"document .* its name.*doctor\.py"):
        read_passages(engine, [1])


def test_a_changed_text_is_not_read_out(engine: Engine) -> None:
    assert read_text(engine, 1) == "one"
    damage(engine, "text = 'onE'", "documents")
    with pytest.raises(ContractError, match=r"document 'a\.md': its text is not what was stored"):
        read_text(engine, 1)
    with pytest.raises(NotFound):
        read_text(engine, 99)


def test_changes_that_were_meant_are_sealed(engine: Engine) -> None:
    store = find_store(engine, "acme")
    known = read_documents(engine, store)["a.md"]
    rename_documents(engine, [(known, "z.md", known.stamp)])
    set_attributes(engine, store, "z.md", {"team": "sales"})
    stamp_documents(engine, {1: FileStamp(3, 5, 7)})
    assert read_passages(engine, [1])[1].file == "z.md"
    assert [(one.file, one.attributes.get("team")) for one in list_documents(engine, store)] == [
        ("b.md", None),
        ("z.md", "sales"),
    ]


def test_a_change_that_was_meant_does_not_seal_damage(engine: Engine) -> None:
    store = find_store(engine, "acme")
    known = read_documents(engine, store)["a.md"]
    damage(engine, 'stated_attributes = \'{"team": "lies"}\'', "documents")
    set_attributes(engine, store, "a.md", {"year": 1})
    stamp_documents(engine, {1: FileStamp(3, 5, 7)})
    rename_documents(engine, [(known, "z.md", known.stamp)])
    with pytest.raises(ContractError, match=r"document 'z\.md': its name"):
        read_passages(engine, [1])


@pytest.mark.parametrize("change", ['set_attributes = \'{"team": "lies"}\'', "updated_at = 1"])
def test_what_is_ingested_again_takes_nothing_from_a_damaged_row(
    engine: Engine, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = find_store(engine, "acme")
    again = NewDocument("a.md", "x2", "1", 3, "new", ())
    set_attributes(engine, store, "a.md", {"team": "sales"})
    commit_documents(engine, store, [again])
    assert read_set(engine, "a.md") == '{"team": "sales"}', "of a whole row it stays"
    with write_transaction(engine) as connection:
        connection.execute(text(f"UPDATE documents SET {change} WHERE name = 'a.md'"))
    commit_documents(engine, store, [again])
    assert read_set(engine, "a.md") == "{}"
    assert "document 'a.md': its row was damaged" in caplog.text
    assert [state.file for state in list_documents(engine, store)] == ["a.md", "b.md"]


def read_set(engine: Engine, name: str) -> str:
    with read_transaction(engine) as connection:
        query = text("SELECT set_attributes FROM documents WHERE name = :name")
        return str(connection.execute(query, {"name": name}).scalar_one())


def test_the_words_of_a_failure_are_told_as_they_were_stored(engine: Engine) -> None:
    store = find_store(engine, "acme")
    commit_failure(engine, store, NewDocument("c.md", "z", "1", 0, "", ()), InvalidFile("c.md: it is empty."))
    assert read_failures(engine, store) == {"c.md": ("invalid_file", "c.md: it is empty.")}
    assert list_documents(engine, store)[-1].last_error == {"code": "invalid_file", "message": "c.md: it is empty."}
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE documents SET error = 'all is well' WHERE name = 'c.md'"))
    assert read_failures(engine, store) == {}  # so that the file is read again
    with pytest.raises(ContractError, match=r"document 'c\.md': its name, attributes, state"):
        list_documents(engine, store)


def test_damaged_vectors_are_not_copied_to_other_chunks(engine: Engine) -> None:
    store, said = find_store(engine, "acme"), hash_chunk("A", "one")
    assert read_chunk_vectors(engine, store, [said])[said].windows.shape == (2, 4)
    damage(engine, "embeddings = zeroblob(32)")
    assert read_chunk_vectors(engine, store, [said]) == {}


def test_rows_of_an_earlier_version_are_read(engine: Engine) -> None:
    with read_transaction(engine) as connection:
        document = connection.execute(text(f"SELECT {DOCUMENT_COLUMNS} FROM documents d WHERE id = 1")).mappings().one()
    words = "\0".join(str(document[key]) for key in DOCUMENT_SEALED_BEFORE)
    damage(engine, f"seal = '{sha256_bytes(words.encode())}'", "documents")
    assert read_passages(engine, [1])[1].file == "a.md"
    damage(engine, "name = 'c.md'", "documents")
    with pytest.raises(ContractError, match=r"document 'c\.md'"):
        read_passages(engine, [1])
    damage(engine, "name = 'a.md', seal = NULL, text_sha256 = NULL", "documents")
    with read_transaction(engine) as connection:
        kept = connection.execute(text("SELECT * FROM chunks WHERE id = 1")).mappings().one()
    words = "\0".join(str(kept[key]) for key in SEALED if key != "document_id")
    damage(engine, f"seal = '{sha256_bytes(words.encode())}'")
    assert read_passages(engine, [1])[1].page == 1
    assert read_text(engine, 1) == "one"
    damage(engine, "page = 2")
    with pytest.raises(ContractError, match="chunk-1: its place"):
        read_passages(engine, [1])
    damage(engine, "page = 1, seal = NULL, embeddings_sha256 = NULL, spans = NULL")
    assert read_passages(engine, [1])[1].page == 1
    (row,) = read_chunks(engine, find_store(engine, "acme"))[1]
    assert (row.vectors.windows.shape, row.vectors.spans.shape) == ((2, 4), (0, 4))
