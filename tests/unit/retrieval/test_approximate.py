"""Lists of long runs: nearly everything is found, what is found is scored exactly, masks hold and damage is seen."""

import logging
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from core.layout import DataDir
from retrieval import approximate, dense, indexes
from retrieval.approximate import ARRAYS, VectorLists, make_lists, pick_rows, thin_lists
from retrieval.card_index import CPU, FLAT, CardIndex
from retrieval.config import IndexDevice
from retrieval.database import open_database
from retrieval.dense import DenseIndex, join_vectors, make_dense, make_run, search_dense
from retrieval.embedding import normalise_rows
from retrieval.snapshot import StoreIndex, load_snapshot, open_index, snapshot_folder
from retrieval.store import NewChunk, NewDocument, Store, commit_documents, find_store, make_store
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans

CHUNKS = 6000
DIMENSION = 32


def make_vectors(count: int = CHUNKS, seed: int = 0) -> NDArray[np.float32]:
    """Clustered unit vectors, as embeddings of passages on some hundred subjects lie."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((120, DIMENSION), dtype=np.float32)
    noise = chance.standard_normal((count, DIMENSION), dtype=np.float32)
    return normalise_rows(centres[chance.integers(len(centres), size=count)] + np.float32(0.8) * noise)


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return make_vectors()


@pytest.fixture(scope="module")
def lists(vectors: NDArray[np.float32]) -> VectorLists:
    return make_lists(vectors)


@pytest.fixture
def index(vectors: NDArray[np.float32], lists: VectorLists, monkeypatch: pytest.MonkeyPatch) -> DenseIndex:
    monkeypatch.setattr(approximate, "LOOKED_PER_CANDIDATE", 1)
    return make_dense([make_run(vectors, np.arange(len(vectors)), IndexDevice.cpu, lists)])


def measure_recall(index: DenseIndex, queries: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> float:
    found = total = 0
    for query in queries:
        places, scores = search_dense(index, query, 10, allowed)
        wanted, exact = search_dense(index, query, 10, allowed, exact=True)
        known = dict(zip(wanted.tolist(), exact.tolist(), strict=True))
        for place, score in zip(places.tolist(), scores.tolist(), strict=True):
            assert known.get(place, score) == score  # to the bit
        found += len(known.keys() & set(places.tolist()))
        total += len(wanted)
    return found / total


def test_a_part_of_the_vectors_is_enough_for_nearly_all_of_the_nearest(index: DenseIndex, lists: VectorLists) -> None:
    assert lists.is_worthwhile
    assert lists.budget < CHUNKS / 3
    recall = measure_recall(index, make_vectors(200, seed=5))
    assert recall >= 0.98
    assert measure_recall(make_dense(index.runs), make_vectors(50, seed=6)) == pytest.approx(recall, abs=0.02)


def test_the_measured_budget_is_what_makes_the_recall(index: DenseIndex, lists: VectorLists) -> None:
    starved = replace(lists, tuning=np.array([lists.budget / 100, 0, CHUNKS]))
    (run,) = index.runs
    assert measure_recall(make_dense([replace(run, lists=starved)]), make_vectors(100, seed=5)) < 0.95


def test_lists_are_the_same_for_the_same_vectors(vectors: NDArray[np.float32], lists: VectorLists) -> None:
    again = make_lists(vectors.copy())
    for name in ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(lists, name)), name


@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_a_filter_holds_and_costs_no_recall(index: DenseIndex, share: float) -> None:
    allowed = np.random.default_rng(1).random(CHUNKS) < share
    queries = make_vectors(60, seed=7)
    assert measure_recall(index, queries, allowed) >= 0.97
    for query in queries[:10]:
        places, _ = search_dense(index, query, 10, allowed)
        assert allowed[places].all()
        assert len(places) == min(10, np.count_nonzero(allowed))


def test_few_allowed_vectors_are_all_looked_at(index: DenseIndex, lists: VectorLists) -> None:
    allowed = np.zeros(CHUNKS, dtype=bool)
    allowed[[3, 4000, 5999]] = True
    assert sorted(pick_rows(lists, make_vectors(1)[0], 10, allowed).tolist()) == [3, 4000, 5999]


def test_what_comes_later_is_scanned_beside_the_lists(index: DenseIndex) -> None:
    late = make_vectors(300, seed=11)
    both = make_dense([*index.runs, make_run(late, np.arange(300), IndexDevice.cpu)])
    for number in (0, 150, 299):
        places, _ = search_dense(both, late[number], 10)
        assert places[0] == CHUNKS + number


def test_windows_of_one_chunk_count_once(vectors: NDArray[np.float32], lists: VectorLists) -> None:
    owners = np.repeat(np.arange(CHUNKS // 3), 3)
    index = make_dense([make_run(vectors, owners, IndexDevice.cpu, lists)])
    assert measure_recall(index, make_vectors(40, seed=8)) >= 0.97


def test_lists_without_what_has_gone_hold_the_same_rows(
    index: DenseIndex, lists: VectorLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "LISTED_FROM_ROWS", 1000)
    kept = np.random.default_rng(2).random(CHUNKS) < 0.95
    joined = join_vectors(list(index.runs), [kept], IndexDevice.cpu)
    assert joined.lists is not None
    assert sorted(joined.lists.rows.tolist()) == list(range(int(kept.sum())))
    query = make_vectors(1, seed=12)[0]
    before = pick_rows(lists, query, 10, kept)
    renumbered = np.cumsum(kept) - 1
    assert set(pick_rows(joined.lists, query, 10, None).tolist()) <= set(renumbered[before].tolist())
    assert measure_recall(make_dense([joined]), make_vectors(60, seed=13)) >= 0.97
    assert thin_lists(lists, np.arange(CHUNKS) < CHUNKS / 2) is None  # trained with too much that is not there


def commit(data: DataDir, name: str, vectors: NDArray[np.float32]) -> Store:
    engine = open_database(data.database)
    make_store(engine, "acme", EmbedderIdentity("clustered", DIMENSION, "0"))
    bare = no_spans(DIMENSION)
    chunks = tuple(NewChunk(0, 1, None, None, "pump", ChunkVectors(row[None, :], bare)) for row in vectors)
    commit_documents(engine, find_store(engine, "acme"), [NewDocument(name, "1", "1", 1, "pump", chunks)])
    store = find_store(engine, "acme")
    engine.dispose()
    return store


def read_index(data: DataDir, store: Store) -> StoreIndex:
    engine = open_database(data.database)
    index = open_index(engine, data, store, IndexDevice.cpu)
    engine.dispose()
    return index


def test_a_snapshot_keeps_the_lists_and_sees_their_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(approximate, "LISTED_FROM_ROWS", 1000)
    data = DataDir(tmp_path)
    store = commit(data, "old", make_vectors(2000))
    made = read_index(data, store).runs[0].vectors.lists
    folder = snapshot_folder(data, store)
    loaded = load_snapshot(folder, store, IndexDevice.cpu)
    assert made is not None
    assert loaded is not None
    kept = loaded.runs[0].vectors.lists
    assert kept is not None
    for name in ARRAYS:
        assert np.array_equal(getattr(made, name), getattr(kept, name)), name
    for name in ARRAYS:
        path = folder / f"000-list_{name}.npy"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with caplog.at_level(logging.WARNING):
            assert load_snapshot(folder, store, IndexDevice.cpu) is None
        assert f"list_{name}.npy: its checksum differs" in caplog.text
        path.write_bytes(content)


def test_a_change_keeps_the_lists_of_what_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "LISTED_FROM_ROWS", 1000)
    data = DataDir(tmp_path)
    first = commit(data, "old", make_vectors(2000))
    read_index(data, first)
    inode = (snapshot_folder(data, first) / "000-list_rows.npy").stat().st_ino
    monkeypatch.setattr(approximate, "make_lists", None)  # calling it would fail
    second = commit(data, "new", make_vectors(20, seed=3))
    assert [run.vectors.lists is not None for run in read_index(data, second).runs] == [True, False]
    assert (snapshot_folder(data, second) / "000-list_rows.npy").stat().st_ino == inode


def test_who_follows_a_large_ingestion_opens_the_lists_that_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "LISTED_FROM_ROWS", 1000)
    monkeypatch.setattr(indexes, "REFRESH_SHARE", 1e9)
    data = DataDir(tmp_path)
    store = commit(data, "0", make_vectors(30, seed=1))
    engine = open_database(data.database)
    following = indexes.StoreIndexes(engine, data, IndexDevice.cpu)

    def list_lengths() -> list[tuple[int, bool]]:
        index = following.read("acme", store.embedder)
        return [(len(run.numbers), run.vectors.lists is not None) for run in index.runs]

    assert list_lengths() == [(30, False)]
    commit(data, "1", make_vectors(1500, seed=2))
    assert list_lengths() == [(1530, False)]
    read_index(data, commit(data, "2", make_vectors(10, seed=3)))
    assert list_lengths() == [(1540, True)]
    engine.dispose()


def test_what_a_card_finds_in_half_precision_is_scored_by_the_cpu(
    vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Half(CardIndex):
        """A CPU index of the precision in which a card holds many vectors."""

        def find_rows(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
            asked.append(count)
            return super().find_rows(queries, count)

    halved = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    halved.train(vectors)
    halved.add(vectors)
    monkeypatch.setattr(dense, "place_on_gpu", lambda *_: Half(FLAT, halved, CHUNKS, CPU))
    index = make_dense([make_run(vectors, np.arange(CHUNKS), IndexDevice.gpu)])
    query = make_vectors(1, seed=4)[0]
    places, scores = search_dense(index, query, 10)
    exact = make_dense([replace(index.runs[0], on_gpu=None)])
    wanted, values = search_dense(exact, query, 10)
    assert asked == [20]
    assert places.tolist() == wanted.tolist()
    assert scores.tolist() == values.tolist()
