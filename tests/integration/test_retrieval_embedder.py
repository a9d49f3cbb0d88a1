"""The real all-MiniLM-L6-v2 keeps the contract of the hash embedder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrieval.config import Dtype, EmbedderConfig
from retrieval.embedding import Embedder, SentenceEmbedder
from tests.fakes.embedder_contract import CHECKS, TEXTS


@pytest.fixture(scope="module")
def minilm(demo_models: Path) -> SentenceEmbedder:
    return SentenceEmbedder(demo_models / "models" / "all-minilm-l6-v2", EmbedderConfig())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_minilm_keeps_the_contract(minilm: SentenceEmbedder, check: Callable[[Embedder], None]) -> None:
    check(minilm)


def test_minilm_is_what_its_folder_says(minilm: SentenceEmbedder) -> None:
    assert minilm.identity.dimension == 384
    assert minilm.max_tokens == 254
    assert minilm.embed_query("pump") is minilm.embed_query("pump")  # from the cache


def test_meaning_counts_where_no_word_is_shared(minilm: SentenceEmbedder) -> None:
    passages = ["The guarantee lasts 26 months.", "Ducks eat grain.", "The shop opens at nine."]
    assert (minilm.embed_windows(passages) @ minilm.embed_query("how long is the warranty?")).argmax() == 0


def test_vectors_of_different_dtypes_may_be_mixed(demo_models: Path) -> None:
    folder = demo_models / "models" / "all-minilm-l6-v2"
    texts = [*TEXTS, "The guarantee lasts 26 months. " * 30, "x", "1.5 bar"]
    found = [
        SentenceEmbedder(folder, EmbedderConfig(dtype=dtype)).embed_windows(texts)
        for dtype in (Dtype.float32, Dtype.bfloat16)
    ]
    assert not np.array_equal(found[0], found[1])
    assert ((found[0] * found[1]).sum(axis=1) > 0.999).all()
