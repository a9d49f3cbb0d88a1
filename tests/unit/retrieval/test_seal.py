"""Seals: whatever changes in the row of a chunk or its document is seen when it is read, and refused by its name."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from core.errors import ContractError, NotFound
from core.layout import sha256_bytes
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.documents import read_documents, read_text, rename_documents, set_attributes
from retrieval.seal import SEALED
from retrieval.store import (
    EmbedderIdentity,
    NewChunk,
    NewDocument,
    commit_document,
    find_store,
    make_store,
    read_chunks,
    read_passages,
)
from retrieval.vectors import ChunkVectors


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(tmp_path / "loam.db")
    store = make_store(engine, "acme", EmbedderIdentity("hash", 4, "abc"))
    vectors = ChunkVectors(np.ones((2, 4), dtype=np.float32), np.ones((3, 4), dtype=np.int8))
    chunk = NewChunk(0, 3, 1, "A", "one", vectors)
    commit_document(engine, store, NewDocument("a.md", "x", "1", 3, "one", (chunk,)))
    commit_document(engine, store, NewDocument("b.md", "y", "1", 3, "two", ()))
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
    assert set_attributes(engine, store, "z.md", {"team": "sales"})["team"] == "sales"
    assert read_passages(engine, [1])[1].file == "z.md"


def test_rows_of_an_earlier_version_are_read(engine: Engine) -> None:
    damage(engine, "seal = NULL, text_sha256 = NULL", "documents")
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
