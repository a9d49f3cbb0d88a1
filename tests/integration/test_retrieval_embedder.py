"""The real all-MiniLM-L6-v2 keeps the contract of the hash embedder, and a cross-encoder orders the hits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from core.config import Device
from core.errors import InvalidFile
from core.layout import DataDir
from retrieval.config import ChunkingConfig, EmbedderConfig, ParsingConfig, SearchConfig
from retrieval.embedding import Embedder, SentenceEmbedder
from retrieval.ingest import ingest
from retrieval.rerank import Reranker
from retrieval.searcher import Searcher
from tests.fakes.embedder_contract import CHECKS
from tests.fakes.hash_embedder import HashEmbedder


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


@pytest.fixture(scope="module")
def cross_encoder(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights: it scores, though not well."""
    folder = tmp_path_factory.mktemp("data") / "models" / "tiny-reranker"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(demo_models / "models" / "all-minilm-l6-v2" / "tokenizer.json"),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reranker_decides_the_order(cross_encoder: Path, tmp_path: Path) -> None:
    data = DataDir(cross_encoder.parents[1])
    source = tmp_path / "source"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.md").write_text(f"# Pump {number}\n\nThe pump number {number} has a filter.\n")
    chunking = ChunkingConfig(60, overlap_tokens=16)
    ingest(data, "acme", source, embedder=HashEmbedder(), chunking=chunking, parsing=ParsingConfig())
    config = SearchConfig(reranker="tiny-reranker", rerank_depth=6)
    result = Searcher(data, search=config, make_embedder=HashEmbedder).search(["acme"], "filter of the pump", k=4)
    scores = [hit.rerank_score for hit in result.hits]
    assert None not in scores
    assert [hit.score for hit in result.hits] == scores == sorted(scores, key=lambda score: -(score or 0))
    texts = [f"{hit.heading}\n{hit.text}" for hit in result.hits]
    wanted = Reranker(cross_encoder, Device.cpu).score("filter of the pump", texts)
    assert np.allclose(wanted, np.array(scores, dtype=np.float32), atol=1e-4)
    assert result.timings_ms["rerank"] > 0


def test_a_reranker_that_can_carry_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidFile, match=r"pytorch_model\.bin"):
        Reranker(tmp_path, Device.cpu)
