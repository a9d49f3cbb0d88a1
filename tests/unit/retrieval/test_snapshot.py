"""Snapshots are caches: good ones are loaded, damage is seen, and the database makes them again without embedding."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from core.layout import DataDir
from retrieval import snapshot
from retrieval.config import IndexDevice
from retrieval.database import open_database
from retrieval.dense import search_dense
from retrieval.documents import delete_documents, read_documents
from retrieval.embedding import embed_passages
from retrieval.erasure import erase_deleted, hold_snapshots
from retrieval.lexical import score_lexical
from retrieval.snapshot import (
    StoreIndex,
    build_index,
    load_snapshot,
    open_index,
    save_snapshot,
    snapshot_folder,
    update_index,
)
from retrieval.spans import score_spans
from retrieval.store import NewChunk, NewDocument, Store, commit_documents, find_store, make_store
from tests.fakes.hash_embedder import HashEmbedder

TEXTS = ["The pump has a warranty of 26 months.", "Ducks eat grain and grass.", "Clean the filter every month."]
EMBEDDER = HashEmbedder()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path)


@pytest.fixture
def engine(data: DataDir) -> Engine:
    return open_database(data.database)


@pytest.fixture
def acme(engine: Engine) -> Store:
    store = make_store(engine, "acme", EMBEDDER.identity)
    for number, text in enumerate(TEXTS):
        chunk = NewChunk(0, len(text), None, None, text, embed_passages([(None, text)], EMBEDDER)[0])
        commit_documents(engine, store, [NewDocument(f"{number}.md", str(number), "1", 1, text, (chunk,))])
    return find_store(engine, "acme")


def ask(index: StoreIndex) -> list[object]:
    """The answers of an index to a few questions."""
    answers: list[object] = [index.numbers.tolist(), index.store]
    for query in ("warranty of the pump", "what do ducks eat?"):
        assert index.dense is not None
        positions, scores = search_dense(index.dense, EMBEDDER.embed_query(query), 3)
        answers += [positions.tolist(), scores.tolist(), score_lexical(index.lexical, query).tolist()]
        runs = [run.spans for run in index.runs]
        answers.append(score_spans(runs, EMBEDDER.embed_query(query), positions, scores).tolist())
    return answers


def test_a_store_is_searched_in_its_language(engine: Engine, data: DataDir) -> None:
    words = "Die Häuser stehen am Fluss."
    for name, language in (("haus", "german"), ("house", "english")):
        store = make_store(engine, name, EMBEDDER.identity, language)
        chunk = NewChunk(0, len(words), None, None, words, embed_passages([(None, words)], EMBEDDER)[0])
        commit_documents(engine, store, [NewDocument("a.md", name, "1", 1, words, (chunk,))])
        save_snapshot(build_index(engine, find_store(engine, name), IndexDevice.cpu), data)
        opened = open_index(engine, data, find_store(engine, name), IndexDevice.cpu)
        assert bool(score_lexical(opened.lexical, "ein Haus").any()) == (language == "german")
        more = NewDocument("b.md", f"{name} 2", "1", 1, words, (chunk,))
        commit_documents(engine, find_store(engine, name), [more])
        followed = update_index(engine, opened, IndexDevice.cpu)
        assert int((score_lexical(followed.lexical, "ein Haus") > 0).sum()) == (2 if language == "german" else 0)


def test_a_saved_index_answers_like_a_new_one(engine: Engine, data: DataDir, acme: Store) -> None:
    built = build_index(engine, acme, IndexDevice.cpu)
    save_snapshot(built, data)
    loaded = load_snapshot(snapshot_folder(data, acme), acme, IndexDevice.cpu)
    assert loaded is not None
    assert ask(loaded) == ask(built)


def test_opening_saves_and_then_loads(
    engine: Engine, data: DataDir, acme: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(open_index(engine, data, acme, IndexDevice.cpu))
    monkeypatch.setattr(snapshot, "build_index", None)  # calling it would fail
    assert ask(open_index(engine, data, acme, IndexDevice.cpu)) == first


def test_an_empty_store_has_an_index_too(engine: Engine, data: DataDir) -> None:
    empty = make_store(engine, "empty", EMBEDDER.identity)
    for _ in range(2):
        index = open_index(engine, data, empty, IndexDevice.cpu)
        assert index.dense is None
        assert score_lexical(index.lexical, "pump").tolist() == []


def test_a_snapshot_of_another_generation_or_store_is_not_used(engine: Engine, data: DataDir, acme: Store) -> None:
    index = open_index(engine, data, acme, IndexDevice.cpu)
    old = snapshot_folder(data, acme)
    chunk = NewChunk(0, 3, None, None, "new", embed_passages([(None, "new")], EMBEDDER)[0])
    commit_documents(engine, acme, [NewDocument("new.md", "n", "1", 3, "new", (chunk,))])
    now = find_store(engine, "acme")
    assert load_snapshot(old, now, IndexDevice.cpu) is None
    assert len(open_index(engine, data, now, IndexDevice.cpu).numbers) == len(index.numbers) + 1
    assert not old.exists()
    assert [path.name for path in old.parent.iterdir()] == [str(now.generation)]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    engine: Engine, data: DataDir, acme: Store
) -> None:
    folder = data.indexes / str(acme.id)
    (folder / ".3.token.tmp").mkdir(parents=True)
    with hold_snapshots(folder, wait=True):
        erase_deleted(engine, data)
    assert [path.name for path in folder.iterdir()] == [".3.token.tmp"]
    erase_deleted(engine, data)
    assert list(folder.iterdir()) == []


def test_a_snapshot_that_comes_late_does_not_bring_back_what_was_deleted(
    engine: Engine, data: DataDir, acme: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = build_index(engine, acme, IndexDevice.cpu)
    (name, *_) = read_documents(engine, acme)
    delete_documents(engine, acme, [read_documents(engine, acme)[name].id])
    monkeypatch.setattr(snapshot, "build_index", lambda *_: late)
    open_index(engine, data, acme, IndexDevice.cpu)
    assert not snapshot_folder(data, acme).exists()


def test_a_disk_without_space_costs_the_snapshot_only(
    engine: Engine, data: DataDir, acme: Store, caplog: pytest.LogCaptureFixture
) -> None:
    data.indexes.write_text("a file where the folder should be")
    index = open_index(engine, data, acme, IndexDevice.cpu)
    assert np.array_equal(index.numbers, build_index(engine, acme, IndexDevice.cpu).numbers)
    assert "was not saved" in caplog.text
