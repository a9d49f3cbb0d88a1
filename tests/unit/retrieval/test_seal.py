"""Seals: whatever changes in a chunk's row is seen when it is read, and refused by the chunk's name."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from core.errors import ContractError
from retrieval.database import open_database, write_transaction
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
    return engine


def damage(engine: Engine, change: str) -> None:
    with write_transaction(engine) as connection:
        connection.execute(text(f"UPDATE chunks SET {change}"))


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


def test_rows_of_an_earlier_version_are_read(engine: Engine) -> None:
    damage(engine, "seal = NULL, embeddings_sha256 = NULL, spans = NULL")
    assert read_passages(engine, [1])[1].page == 1
    (row,) = read_chunks(engine, find_store(engine, "acme"))[1]
    assert (row.vectors.windows.shape, row.vectors.spans.shape) == ((2, 4), (0, 4))
