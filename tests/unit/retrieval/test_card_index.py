"""Each kind of index for a card, as its twin on the CPU, finds what brute force finds, and is tuned until it does."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval import card_index, dense
from retrieval.approximate import TARGET_RECALL, make_lists
from retrieval.card_index import CPU, FLAT, GRAPH, LISTS, CardIndex, Place, build_card_index, draw_queries, list_kinds
from retrieval.config import IndexDevice
from retrieval.dense import DenseIndex, make_dense, make_run, search_dense
from tests.unit.retrieval.test_approximate import CHUNKS, make_vectors

KINDS = pytest.mark.parametrize("kind", [FLAT, LISTS, GRAPH])


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return make_vectors()


def measure_recall(index: CardIndex, vectors: NDArray[np.float32], seed: int) -> float:
    """Return recall@10 of queries that the index was not tuned on."""
    queries = make_vectors(200, seed)
    wanted = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = index.find_rows(queries, 10)
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(wanted, found, strict=True)]))


@KINDS
def test_it_finds_what_brute_force_finds(kind: str, vectors: NDArray[np.float32]) -> None:
    index = build_card_index(vectors, CPU, kinds=[kind])
    assert index.kind == kind
    assert index.recall >= TARGET_RECALL
    assert measure_recall(index, vectors, seed=5) >= 0.98


def test_lists_take_the_centroids_that_are_there(vectors: NDArray[np.float32]) -> None:
    lists = make_lists(vectors)
    index = build_card_index(vectors, CPU, lists.centroids, kinds=[LISTS])
    assert measure_recall(index, vectors, seed=6) >= 0.98


def test_effort_grows_until_enough_is_found(vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_index, "PROBES", (1, 2, 4, 8, 16, 32, 64, 128))
    index = build_card_index(vectors, CPU, kinds=[LISTS])
    queries, nearest = draw_queries(vectors)
    assert index.effort > 1
    at_least = index.effort
    index.effort = at_least // 2
    found = index.find_rows(queries, 10)
    assert np.mean([np.isin(one, other).mean() for one, other in zip(nearest, found, strict=True)]) < TARGET_RECALL


def test_what_cannot_find_enough_gives_way_to_a_scan(
    vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(card_index, "PROBES", (1,))
    with caplog.at_level(logging.INFO):
        assert build_card_index(vectors, CPU, kinds=[LISTS, FLAT]).kind == FLAT
    assert "lists of 6000 vectors: recall" in caplog.text
    with pytest.raises(RuntimeError, match="finds"):
        build_card_index(vectors, CPU, kinds=[LISTS])


def test_what_does_not_fit_gives_way_to_the_next(vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Error in virtual void* StandardGpuResourcesImpl: out of memory")

    monkeypatch.setitem(card_index._MAKERS, GRAPH, fail)
    assert build_card_index(vectors, CPU, kinds=[GRAPH, FLAT]).kind == FLAT


def test_few_vectors_are_scanned_and_many_are_not() -> None:
    assert list(list_kinds(1000, CPU)) == [FLAT]
    assert list(list_kinds(10**7, CPU)) == [GRAPH, LISTS, FLAT]
    assert list(list_kinds(10**7, Place(object()))) == [LISTS, FLAT], "this build of FAISS has no CAGRA"


def place(vectors: NDArray[np.float32], kind: str) -> tuple[DenseIndex, DenseIndex]:
    """Return a run with an index of a card, and the same without."""
    run = make_run(vectors, np.arange(len(vectors)), IndexDevice.cpu)
    card = replace(run, on_gpu=build_card_index(vectors, CPU, kinds=[kind]))
    return make_dense([card]), make_dense([run])


@KINDS
@pytest.mark.parametrize("share", [0.9, 0.3, 0.02, 0.0])
def test_nothing_is_found_that_a_filter_hides(kind: str, share: float, vectors: NDArray[np.float32]) -> None:
    card, exact = place(vectors, kind)
    chance = np.random.default_rng(7)
    allowed = chance.random(CHUNKS) < share
    hits = total = 0
    for query in make_vectors(30, seed=8):
        found, scores = search_dense(card, query, 10, allowed)
        wanted, values = search_dense(exact, query, 10, allowed)
        assert allowed[found].all()
        assert len(found) == len(wanted)
        known = dict(zip(wanted.tolist(), values.tolist(), strict=True))
        assert all(
            known.get(place, score) == score for place, score in zip(found.tolist(), scores.tolist(), strict=True)
        )
        hits, total = hits + len(known.keys() & set(found.tolist())), total + len(wanted)
    assert hits >= (1.0 if kind == FLAT else 0.97) * total


def test_a_wide_filter_asks_the_card_and_a_narrow_one_the_cpu(
    vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    card, _ = place(vectors, FLAT)
    asked: list[int] = []
    find_rows = CardIndex.find_rows

    def count(self: CardIndex, queries: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        asked.append(wanted)
        return find_rows(self, queries, wanted)

    monkeypatch.setattr(CardIndex, "find_rows", count)
    query = make_vectors(1, seed=9)[0]
    search_dense(card, query, 10, np.arange(CHUNKS) % 2 == 0)
    search_dense(card, query, 10, np.arange(CHUNKS) < 20)
    assert asked == [40]


def test_a_card_that_makes_no_index_leaves_the_search_to_the_cpu(
    vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> CardIndex:
        raise RuntimeError("out of memory\nsomewhere")

    monkeypatch.setattr(dense, "open_card", lambda: CPU)
    assert dense.place_on_gpu(vectors, IndexDevice.auto) is not None
    monkeypatch.setattr(dense, "build_card_index", fail)
    assert dense.place_on_gpu(vectors, IndexDevice.auto) is None
    assert "(out of memory)" in caplog.text


class Slow:
    """An index that says whether two threads were in its place's indexes at once, as FAISS's resources would not."""

    def __init__(self, busy: list[int], overlaps: list[int]) -> None:
        self.busy, self.overlaps = busy, overlaps

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[Any, NDArray[np.int64]]:
        """Take a moment and notice who else is there."""
        self.busy.append(1)
        self.overlaps.append(len(self.busy))
        time.sleep(0.002)
        self.busy.pop()
        return None, np.zeros((len(queries), count), dtype=np.int64)


def test_all_indexes_of_a_place_take_turns() -> None:
    busy: list[int] = []
    overlaps: list[int] = []
    shared = Place()
    indexes = [CardIndex(FLAT, Slow(busy, overlaps), 8, shared) for _ in range(3)]
    query = np.ones((1, 4), dtype=np.float32)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: indexes[number % 3].find_rows(query, 2), range(24)))
    assert overlaps == [1] * 24


def test_an_index_is_freed_when_nobody_uses_its_place() -> None:
    shared, freed = Place(), threading.Event()

    class Told(Slow):
        def __del__(self) -> None:
            freed.set()

    kept = [CardIndex(FLAT, Told([], []), 8, shared)]
    with shared.lock:
        dropping = threading.Thread(target=kept.clear)
        dropping.start()
        assert not freed.wait(0.05)
    dropping.join(60)
    assert freed.is_set()
