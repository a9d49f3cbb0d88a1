"""The FAISS wheel for cards knows each name, option and order of arguments that card_index.py uses; no card is needed.

Where FAISS is the wheel for CPUs these tests are skipped. In a clone: `pip install --target DIR faiss-gpu==VERSION` as
locks/cuda.txt has it, or `faiss-gpu-cuvs` for graphs, then `PYTHONPATH=DIR pytest` with this file.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval import card_index
from retrieval.card_index import FLAT, GRAPH, LISTS, SCRATCH_BYTES, CardIndex, Place, open_card

_faiss: Any = faiss

pytestmark = pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources"), reason="wanted the wheel of FAISS for cards (faiss-gpu), found another"
)
NO_GRAPH = "wanted a build of FAISS with cuVS (GpuIndexCagra), found one without"
DIMENSION = 16


@pytest.fixture
def place() -> Place:
    resources = _faiss.StandardGpuResources()
    resources.setTempMemory(SCRATCH_BYTES)
    return Place(resources)


def make(kind: str, place: Place) -> Any:
    vectors = np.random.default_rng(0).standard_normal((400, DIMENSION), dtype=np.float32)
    centroids = vectors[:8] if kind == LISTS else None
    return card_index._MAKERS[kind](vectors, place, centroids)


@pytest.mark.parametrize("kind", [FLAT, LISTS, GRAPH])
def test_an_index_can_be_made_or_only_the_card_is_missing(kind: str, place: Place) -> None:
    if kind == GRAPH and not place.has_graph:
        pytest.skip(NO_GRAPH)
    if faiss.get_num_gpus():
        assert make(kind, place).ntotal == 400
        return
    with pytest.raises(RuntimeError, match="Invalid GPU device 0"):  # a wrong name or order would be another error
        make(kind, place)


def test_without_a_card_none_is_opened() -> None:
    if not faiss.get_num_gpus():
        assert open_card() is None


def list_options(make_options: Callable[[], Any]) -> set[str]:
    return {name for name in dir(make_options()) if not name.startswith("_")}


def test_the_options_are_those_of_this_build() -> None:
    assert {"useFloat16", "usePrecomputed", "use_cuvs"} <= list_options(_faiss.GpuClonerOptions)
    assert {"nprobe", "nlist", "is_trained", "train", "add"} <= set(dir(_faiss.GpuIndexIVFScalarQuantizer))


def test_a_graph_knows_its_options(place: Place) -> None:
    if not place.has_graph:
        pytest.skip(NO_GRAPH)
    assert {"graph_degree", "intermediate_graph_degree"} <= list_options(_faiss.GpuIndexCagraConfig)
    assert "itopk_size" in list_options(_faiss.SearchParametersCagra)
    assert {"train", "search"} <= set(dir(_faiss.GpuIndexCagra))
    parameters = CardIndex(GRAPH, object(), 1000, place)._make_parameters(70)["params"]
    assert parameters.itopk_size == 96
