"""The real all-MiniLM-L6-v2 keeps the contract of the hash embedder."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from core.errors import ConfigError
from retrieval.config import Dtype, EmbedderConfig, EncoderEngine
from retrieval.embedding import Embedder, SentenceEmbedder, normalise_rows
from tests.fakes.embedder_contract import CHECKS, TEXTS

MIXED = [
    *TEXTS,
    "The guarantee lasts 26 months. " * 50,
    "x",
    "1.5 bar",
    "One sentence of a dozen words stands here.",
    "",
]


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


WAYS = [
    (EncoderEngine.torch, Dtype.float32, 0.99999),
    (EncoderEngine.openvino, Dtype.float32, 0.99999),
    (EncoderEngine.torch, Dtype.bfloat16, 0.999),
    (EncoderEngine.openvino, Dtype.bfloat16, 0.999),
    (EncoderEngine.openvino, Dtype.int8, 0.99),
]


@pytest.fixture(scope="module")
def truth(demo_models: Path) -> NDArray[np.float32]:
    """What sentence-transformers itself says in float32."""
    model = SentenceTransformer(str(demo_models / "models" / "all-minilm-l6-v2"), device="cpu", local_files_only=True)
    return np.asarray(model.encode(MIXED, normalize_embeddings=True), dtype=np.float32)


@pytest.mark.parametrize(("engine", "dtype", "least"), WAYS)
def test_every_engine_and_dtype_gives_vectors_that_may_be_mixed(
    demo_models: Path, truth: NDArray[np.float32], engine: EncoderEngine, dtype: Dtype, least: float
) -> None:
    folder = demo_models / "models" / "all-minilm-l6-v2"
    embedder = SentenceEmbedder(folder, EmbedderConfig(engine=engine, dtype=dtype, batch_size=1))
    threads = torch.get_num_threads()
    vectors, spans = embedder.embed_with_spans(MIXED)  # long and short texts, several and one at a time
    assert torch.get_num_threads() == threads
    assert ((vectors * truth).sum(axis=1) > least).all()
    assert [len(one) for one in spans] == [1, 1, 1, 31, 1, 1, 1, 0]
    assert spans[0].shape[1] == 384
    exact = SentenceEmbedder(folder, EmbedderConfig(engine=EncoderEngine.torch, dtype=Dtype.float32))
    for one, other in zip(spans, exact.embed_with_spans(MIXED)[1], strict=True):
        rows, wanted = normalise_rows(one.astype(np.float32)), normalise_rows(other.astype(np.float32))
        assert ((rows * wanted).sum(axis=1) > least - 0.01).all()


def test_int8_is_refused_where_nothing_computes_it() -> None:
    with pytest.raises(ConfigError, match=r"embedder\.dtype: wanted int8"):
        EmbedderConfig(engine=EncoderEngine.torch, dtype=Dtype.int8)


@pytest.mark.parametrize("engine", [EncoderEngine.torch, EncoderEngine.openvino])
def test_batches_come_back_in_order_whatever_their_shapes(demo_models: Path, engine: EncoderEngine) -> None:
    folder = demo_models / "models" / "all-minilm-l6-v2"
    embedder = SentenceEmbedder(folder, EmbedderConfig(engine=engine, batch_size=1))
    texts = ["x", *(f"{word} is one word. " * 60 for word in ("Duck", "Pump", "Valve", "Pond"))]  # one alone in a batch
    together, spans = embedder.embed_with_spans(texts)
    for text, vector, rows in zip(texts, together, spans, strict=True):
        alone, rows_alone = embedder.embed_with_spans([text])
        assert float(vector @ alone[0]) > 0.999
        assert rows.shape == rows_alone[0].shape
    with ThreadPoolExecutor(8) as threads:  # more callers than requests
        found = list(threads.map(embedder.embed_windows, [texts, ["x"], texts[1:3]] * 8))
    for vectors, wanted in zip(found, [together, together[:1], together[1:3]] * 8, strict=True):
        assert ((vectors * wanted).sum(axis=1) > 0.999).all()


def test_a_signal_after_an_embedder_has_gone_is_survived(demo_models: Path) -> None:
    """OpenVINO's stack for signals must not be freed under the thread that has it."""
    program = """
import faulthandler, gc, os, signal, sys
from pathlib import Path
from retrieval.config import EmbedderConfig, EncoderEngine
from retrieval.embedding import SentenceEmbedder
faulthandler.enable()
signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
for _ in range(3):
    SentenceEmbedder(Path(sys.argv[1]), EmbedderConfig(engine=EncoderEngine.openvino)).embed_query("pump")
    gc.collect()
    junk = [bytearray(11_568) for _ in range(2000)]
    os.kill(os.getpid(), signal.SIGINT)
"""
    folder = demo_models / "models" / "all-minilm-l6-v2"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["handled"] * 3), done.stderr[-2000:]
