"""Labelled questions name chunks or documents of the store; every fault is told with its line."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from core.errors import InputError, NotFound
from retrieval.database import open_database
from retrieval.embedding import embed_passages
from retrieval.labels import read_labels
from retrieval.store import NewChunk, NewDocument, Store, commit_documents, make_store
from tests.fakes.hash_embedder import HashEmbedder

EMBEDDER = HashEmbedder()
DOCUMENTS = {"pump.md": ["A warranty of 26\nMonths.", "Clean the filter."], "duck.md": ["Ducks eat grain."]}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path / "loam.db")


@pytest.fixture
def acme(engine: Engine) -> Store:
    store = make_store(engine, "acme", EMBEDDER.identity)
    for name, texts in DOCUMENTS.items():
        vectors = embed_passages([(None, text) for text in texts], EMBEDDER)
        chunks = tuple(NewChunk(0, 1, None, None, *pair) for pair in zip(texts, vectors, strict=True))
        commit_documents(engine, store, [NewDocument(name, name, "1", 1, "", chunks)])
    return store


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_question_names_chunks_by_words_documents_or_numbers(engine: Engine, acme: Store, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "a", "file": "pump.md", "accept": ["26 months"]},
        {"question": "b", "file": "pump.md", "accept": ["99 months"]},
        {"question": "c", "files": ["pump.md", "duck.md"]},
        {"question": "d", "chunks": ["chunk-3"]},
        {"question": "e", "file": None},
        "",
    )
    labels = read_labels(engine, acme, path)
    found = [(question.text, set(question.relevant), question.by_document) for question in labels.questions]
    assert found == [("a", {1}, False), ("b", {1}, True), ("c", {1, 2}, True), ("d", {3}, False)]
    assert labels.documents == {1: 1, 2: 1, 3: 2}
    assert labels.unanswerable == 1


def test_a_question_may_hold_any_line_end_but_its_own(engine: Engine, acme: Store, tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "a\u2028b\u0085c", "file": "pump.md"}\r')
    assert [question.text for question in read_labels(engine, acme, path).questions] == ["a\u2028b\u0085c"]


def test_every_fault_is_named_with_its_line(engine: Engine, acme: Store, tmp_path: Path) -> None:
    rows = [
        "{",
        [],
        {"question": " "},
        {"question": "x", "file": "none.md"},
        {"question": "x", "chunks": ["chunk-9"]},
        {"question": "x", "chunks": ["9"]},
        {"question": "x", "file": "pump.md", "accept": "26"},
        {"question": "x", "files": "pump.md"},
    ]
    with pytest.raises(InputError) as caught:
        read_labels(engine, acme, write(tmp_path, *rows))
    for line in range(1, len(rows) + 1):
        assert f"\n  line {line}: " in caught.value.message
    with pytest.raises(InputError, match="and 5 more"):
        read_labels(engine, acme, write(tmp_path, *["{"] * 25))


def test_a_file_that_is_not_there_or_not_text_is_refused(engine: Engine, acme: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_labels(engine, acme, tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_labels(engine, acme, tmp_path / "bytes")
