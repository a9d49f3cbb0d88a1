"""Any cross-encoder by its folder orders the hits, on one scale, reading long passages to their end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from core.config import Device
from core.errors import ContractError, InvalidFile, NotFound
from core.layout import DataDir
from retrieval.config import ChunkingConfig, Dtype, EmbedderConfig, EncoderEngine, ParsingConfig, SearchConfig
from retrieval.ingest import ingest
from retrieval.pairs import is_plain
from retrieval.rerank import Reranker
from retrieval.searcher import Searcher, SearchResult
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.tiny_reranker import write_tiny_reranker

WORDS = "the pump number has a filter of clean every month warranty duck eats grass"
QUERY = "filter of the pump"
CPU = EmbedderConfig(device=Device.cpu)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    data = DataDir(tmp_path_factory.mktemp("data"))
    for labels in (1, 2, 3):
        write_tiny_reranker(data.models / f"tiny-{labels}", WORDS, labels)
    source = data.root / "source"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.md").write_text(f"# Pump {number}\n\nThe pump number {number} has a filter.\n")
    chunking = ChunkingConfig(60, overlap_tokens=16)
    ingest(data, "acme", source, embedder=HashEmbedder(), chunking=chunking, parsing=ParsingConfig())
    return data


def search(data: DataDir, k: int = 4, **options: object) -> SearchResult:
    config = SearchConfig(**{"reranker": "tiny-1", "rerank_depth": 6, **options})  # type: ignore[arg-type]
    searcher = Searcher(data, search=config, make_embedder=HashEmbedder)
    result = searcher.search(["acme"], QUERY, k=k)
    searcher.close()
    return result


WAYS = [
    (EncoderEngine.torch, Dtype.auto, 0.01),  # bfloat16 where the CPU has it
    (EncoderEngine.openvino, Dtype.auto, 0.01),
    (EncoderEngine.openvino, Dtype.float32, 1e-5),
    (EncoderEngine.openvino, Dtype.int8, 0.03),
]


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(("engine", "dtype", "most"), WAYS)
def test_scores_are_the_probabilities_of_the_library(
    data: DataDir, labels: int, engine: EncoderEngine, dtype: Dtype, most: float
) -> None:
    folder = data.models / f"tiny-{labels}"
    passages = [f"The pump number {number} has a filter{' of the duck' * (number % 7)}." for number in range(20)]
    config = EmbedderConfig(device=Device.cpu, engine=engine, dtype=dtype)
    found = Reranker(folder, config).score(QUERY, [(None, passage) for passage in passages])
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    logits = model.predict([(QUERY, passage) for passage in passages], activation_fn=lambda value: value)
    wanted = 1 / (1 + np.exp(-logits)) if labels == 1 else np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    assert found.dtype == np.float32
    assert len(np.unique(found)) > 5
    assert np.allclose(found, wanted, atol=most)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_model_with_a_prompt_goes_the_librarys_way_to_the_same_scores(data: DataDir, labels: int) -> None:
    passages = [("Pump", "The filter. " * (1 + number**3)) for number in range(6)]
    scores = []
    for prompts in ({}, {"none": ""}):
        reranker = Reranker(data.models / f"tiny-{labels}", replace(CPU, engine=EncoderEngine.torch))
        reranker._model.prompts |= prompts
        reranker._model.default_prompt_name = next(iter(prompts), None)
        assert is_plain(reranker._model) == (not prompts)
        scores.append(reranker.score(QUERY, passages))
    assert len(np.unique(scores[0].round(4))) > 3
    assert np.allclose(scores[0], scores[1], atol=0.01)


def test_a_model_of_more_labels_is_refused(data: DataDir) -> None:
    with pytest.raises(ContractError, match=r"1 or 2 labels, found 3"):
        Reranker(data.models / "tiny-3", CPU).score(QUERY, [(None, "pump")])


def test_the_end_of_a_long_passage_counts_and_a_long_query_is_cut(data: DataDir) -> None:
    reranker = Reranker(data.models / "tiny-1", CPU)
    end = "the warranty of the pump"
    long = "duck eats grass " * 40 + end
    short, whole, other = reranker.score("warranty", [(None, end), (None, long), (None, "duck eats grass " * 40)])
    assert whole != other
    assert 0 < short < 1
    (cut,) = reranker.score("warranty of the pump " * 100, [("Pump", end)])
    assert 0 < cut < 1
    assert reranker.score("warranty", []).shape == (0,)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_mixes_both_scores(data: DataDir, weight: float) -> None:
    hits = search(data, rerank_weight=weight).hits
    for hit in hits:
        assert hit.rerank_score is not None
        wanted = (1 - weight) * hit.fused_score + weight * hit.rerank_score
        assert hit.score == pytest.approx(wanted, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    if weight == 0:
        plain = search(data, reranker=None).hits
        assert [hit.chunk_id for hit in hits] == [hit.chunk_id for hit in plain]


def test_the_threshold_is_held_against_the_probability(data: DataDir) -> None:
    everything = search(data, k=6)
    probabilities = sorted(hit.rerank_score or 0.0 for hit in everything.hits)
    middle = (probabilities[2] + probabilities[3]) / 2
    result = search(data, k=6, min_score=middle)
    assert {hit.chunk_id for hit in result.hits} == {
        hit.chunk_id for hit in everything.hits if (hit.rerank_score or 0) >= middle
    }
    assert (len(result.hits), result.below_min_score) == (3, 3)
    assert everything.below_min_score == 0
    nothing = search(data, k=6, min_score=0.9999)
    assert (nothing.hits, nothing.below_min_score) == ([], 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_reranker_that_can_carry_code_or_is_not_there_is_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidFile, match=r"pytorch_model\.bin"):
        Reranker(folder, CPU)
    with pytest.raises(NotFound, match="action=train_reranker"):
        Reranker(folder / "none", CPU)
