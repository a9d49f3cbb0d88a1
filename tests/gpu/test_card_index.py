"""On a card: FAISS's indexes find what exact search finds under filters too, and a graph becomes an HNSW."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.card_index import FLAT, GRAPH, LISTS, Place, build_card_index, open_card
from retrieval.config import IndexDevice
from retrieval.dense import make_dense, make_run, search_dense
from tests.unit.retrieval.test_approximate import CHUNKS, make_vectors


@pytest.fixture(scope="module")
def card() -> Place:
    place = open_card()
    if place is None:
        pytest.skip("wanted FAISS with a GPU that works (faiss-gpu), found none")
    return place


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return make_vectors()


@pytest.mark.parametrize("kind", [FLAT, LISTS, GRAPH])
def test_it_finds_what_exact_search_finds_under_filters_too(
    kind: str, card: Place, vectors: NDArray[np.float32]
) -> None:
    if kind == GRAPH and not card.has_graph:
        pytest.skip("wanted a build of FAISS with cuVS (GpuIndexCagra), found one without")
    run = make_run(vectors, np.arange(CHUNKS), IndexDevice.cpu)
    found = make_dense([replace(run, on_gpu=build_card_index(vectors, card, kinds=[kind]))])
    exact = make_dense([run])
    chance, hits = np.random.default_rng(3), 0
    for query in make_vectors(50, seed=8):
        allowed = chance.random(CHUNKS) < chance.choice([0.05, 0.5, 1.0])
        places, scores = search_dense(found, query, 10, allowed)
        wanted, values = search_dense(exact, query, 10, allowed)
        assert allowed[places].all()
        known = dict(zip(wanted.tolist(), values.tolist(), strict=True))
        assert all(
            known.get(place, score) == score for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        )
        hits += len(known.keys() & set(places.tolist()))
    assert hits >= (500 if kind == FLAT else 490)
