"""Tuned settings are kept with the store, taken by searches, and refused when they are damaged."""

import json
from pathlib import Path

import pytest

from core.errors import ContractError
from core.layout import DataDir
from retrieval.config import ChunkingConfig, FusionMethod, ParsingConfig, SearchConfig
from retrieval.database import open_database
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from retrieval.settings import StoreSettings, save_settings
from retrieval.store import find_store
from tests.fakes.hash_embedder import HashEmbedder

SETTINGS = StoreSettings(FusionMethod.rrf, 0.3, 0.2, 2, "small", 7, 0.9, pair_weight=0.4)


def test_settings_come_back_as_they_were() -> None:
    assert StoreSettings.from_json(SETTINGS.to_json()) == SETTINGS
    assert StoreSettings.of(SETTINGS.apply(SearchConfig(reranker="small")), 2) == SETTINGS


def test_what_was_tuned_before_word_pairs_were_tried_leaves_them_as_configured() -> None:
    content = {key: value for key, value in json.loads(SETTINGS.to_json()).items() if key != "pair_weight"}
    search = StoreSettings.from_json(json.dumps(content)).apply(SearchConfig(pair_weight=0.3))
    assert (search.pair_weight, search.dense_weight) == (0.3, 0.3)
    assert SETTINGS.apply(SearchConfig(pair_weight=0.3)).pair_weight == 0.4


def test_what_was_found_with_another_reranker_is_left_alone() -> None:
    search = SETTINGS.apply(SearchConfig(reranker="large"))
    assert (search.fusion, search.dense_weight, search.span_weight) == (FusionMethod.rrf, 0.3, 0.2)
    assert (search.rerank_depth, search.rerank_weight) == (SearchConfig().rerank_depth, SearchConfig().rerank_weight)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        SETTINGS.to_json().replace("0.3", "3"),
        SETTINGS.to_json().replace("rrf", "x"),
        '{"fusion": "rrf"}',
    ],
)
def test_damaged_settings_are_refused(text: str) -> None:
    with pytest.raises(ContractError, match=r"search\.use_tuned=false"):
        StoreSettings.from_json(text)


def test_a_search_takes_a_stores_settings_from_the_next_query_on(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.md").write_text(f"# Pump {number}\n\nThe pump has number {number} and {number} valves.\n")
    for store in ("acme", "zoo"):
        ingest(data, store, source, embedder=HashEmbedder(), chunking=ChunkingConfig(), parsing=ParsingConfig())
    searcher = Searcher(data, search=SearchConfig(pair_weight=0), make_embedder=HashEmbedder)
    stubborn = Searcher(data, search=SearchConfig(pair_weight=0, use_tuned=False), make_embedder=HashEmbedder)
    before = searcher.search(["acme"], "pump 3").hits
    assert len(before) == 5
    engine = open_database(data.database)
    save_settings(engine, find_store(engine, "acme"), StoreSettings(FusionMethod.weighted, 0, 0, 3, None, 20, 0.3))
    tuned = searcher.search(["acme"], "pump 3").hits
    assert len(tuned) == 3
    assert tuned[0].fused_score == 1
    assert [hit.lexical_score for hit in tuned] == sorted((hit.lexical_score for hit in tuned), reverse=True)
    assert tuned[1].fused_score == pytest.approx(tuned[1].lexical_score / tuned[0].lexical_score, abs=1e-6)
    assert len(searcher.search(["acme"], "pump 3", k=4).hits) == 4
    assert len(searcher.search(["acme", "zoo"], "pump 3").hits) == 5  # not tuned alike
    assert stubborn.search(["acme"], "pump 3").hits == before
    save_settings(engine, find_store(engine, "acme"), None)
    assert searcher.search(["acme"], "pump 3").hits == before
    for one in (searcher, stubborn):
        one.close()
