"""However a store changes, an index that follows it answers to the bit like one made anew, and holds nothing gone."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.layout import DataDir
from retrieval import changes, snapshot
from retrieval.changes import read_changes
from retrieval.config import IndexDevice
from retrieval.database import open_database
from retrieval.dense import search_dense
from retrieval.documents import delete_documents, read_documents
from retrieval.embedding import embed_passages
from retrieval.lexical import score_lexical
from retrieval.snapshot import StoreIndex, build_index, open_index, snapshot_folder, update_index
from retrieval.store import NewChunk, NewDocument, commit_documents, find_store, make_store
from tests.fakes.hash_embedder import HashEmbedder

EMBEDDER = HashEmbedder()
WORDS = ["pump", "filter", "duck", "grass", "warranty", "month", "canary"]
CHUNKS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), max_size=5)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "update", "open"]), st.sampled_from("abcd"), CHUNKS), max_size=14
)


def ask(index: StoreIndex) -> list[object]:
    """All scores of an index by chunk number."""
    answers: list[object] = [index.store, index.numbers.tolist()]
    live = np.ones(len(index.slots), dtype=bool) if index.live is None else index.live
    for query in ("pump warranty", "canary duck duck", "grass"):
        lexical = score_lexical(index.lexical, query)[live]
        answers.append(list(zip(index.numbers.tolist(), lexical.tolist(), strict=True)))
        if live.any():
            assert index.dense is not None
            places, scores = search_dense(index.dense, EMBEDDER.embed_query(query), 100, index.live)
            answers.append(sorted(zip(index.slots[places].tolist(), scores.tolist(), strict=True)))
    return answers


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_an_index_that_follows_answers_like_a_new_one(steps: list[tuple[str, str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = DataDir(Path(folder))
        engine = open_database(data.database)
        make_store(engine, "acme", EMBEDDER.identity)
        index = open_index(engine, data, find_store(engine, "acme"), IndexDevice.cpu)
        for kind, name, texts in steps:
            store = find_store(engine, "acme")
            if kind == "put":
                vectors = embed_passages([(None, text) for text in texts], EMBEDDER)
                chunks = [NewChunk(0, 1, None, None, *pair) for pair in zip(texts, vectors, strict=True)]
                commit_documents(engine, store, [NewDocument(name, "1", "1", 1, name, tuple(chunks))])
            elif kind == "delete":
                known = read_documents(engine, store)
                if name in known:
                    delete_documents(engine, store, [known[name].id])
            elif kind == "update":
                index = update_index(engine, index, IndexDevice.cpu)
            else:
                index = open_index(engine, data, store, IndexDevice.cpu)
        index = update_index(engine, index, IndexDevice.cpu)
        store = find_store(engine, "acme")
        wanted = ask(build_index(engine, store, IndexDevice.cpu))
        assert ask(index) == wanted
        assert ask(open_index(engine, data, store, IndexDevice.cpu)) == wanted
        engine.dispose()


def put(data: DataDir, name: str, text: str) -> None:
    engine = open_database(data.database)
    make_store(engine, "acme", EMBEDDER.identity)
    chunk = NewChunk(0, 1, None, None, text, embed_passages([(None, text)], EMBEDDER)[0])
    commit_documents(engine, find_store(engine, "acme"), [NewDocument(name, "1", "1", 1, name, (chunk,))])
    engine.dispose()


def test_a_store_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir(tmp_path)
    for number in range(7):
        put(data, f"{number}", f"pump {number}")
    engine = open_database(data.database)
    store = find_store(engine, "acme")
    wanted = ask(build_index(engine, store, IndexDevice.cpu))
    monkeypatch.setattr(changes, "BATCH", 3)
    sizes: list[int] = []
    nothing = np.zeros(0, dtype=np.int64)
    assert read_changes(engine, store, nothing, 0, lambda rows: sizes.append(len(rows))).last == 7
    assert sizes == [3, 3, 1]
    index = build_index(engine, store, IndexDevice.cpu)
    assert len(index.runs) == 1
    assert ask(index) == wanted


def test_a_new_snapshot_links_to_what_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir(tmp_path)
    for number in range(9):
        put(data, f"{number}", f"pump {number}")
    engine = open_database(data.database)
    first = find_store(engine, "acme")
    open_index(engine, data, first, IndexDevice.cpu)
    inode = (snapshot_folder(data, first) / "000-vectors.npy").stat().st_ino
    monkeypatch.setattr(snapshot, "build_index", None)  # calling it would fail
    put(data, "new", "canary")
    second = find_store(engine, "acme")
    index = open_index(engine, data, second, IndexDevice.cpu)
    assert (snapshot_folder(data, second) / "000-vectors.npy").stat().st_ino == inode
    assert [len(run.numbers) for run in index.runs] == [9, 1]
    assert ask(open_index(engine, data, second, IndexDevice.cpu)) == ask(index)


def test_a_snapshot_holds_no_word_of_what_has_gone(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    for number in range(9):
        put(data, f"{number}", "canary pump" if number == 4 else "pump")
    engine = open_database(data.database)
    open_index(engine, data, find_store(engine, "acme"), IndexDevice.cpu)
    put(data, "4", "pump")
    store = find_store(engine, "acme")
    open_index(engine, data, store, IndexDevice.cpu)
    contents = [path.read_bytes() for path in snapshot_folder(data, store).iterdir()]
    assert not any(b"canari" in content for content in contents)
    assert any(b"pump" in content for content in contents)
