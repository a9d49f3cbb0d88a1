"""The bench asks the same of every arm, and its passages come out of Markdown as they went in."""

import json
from pathlib import Path

import pytest

from core.errors import ConfigError
from retrieval.beir import Collection, CorpusPassage
from retrieval.config import SearchConfig
from retrieval.loaders import load_document
from scripts.bench_retrieval import SPECIAL, BenchConfig, Output, enlarge, list_arms, pick_queries, show

PASSAGES = [CorpusPassage("a", "Pumps", "one two three"), CorpusPassage("b", "", "four five")]


def test_the_arms_differ_in_one_thing_each() -> None:
    arms = list_arms(SearchConfig(reranker="small", dense_weight=0.6))
    assert [(name, arm.dense_weight, arm.reranker) for name, arm in arms.items()] == [
        ("bm25", 0.0, None),
        ("dense", 1.0, None),
        ("hybrid", 0.6, None),
        ("hybrid_rerank", 0.6, "small"),
    ]
    assert list(list_arms(SearchConfig())) == ["bm25", "dense", "hybrid"]


def test_the_first_labelled_queries_are_taken() -> None:
    queries = {str(number): f"query {number}" for number in range(50)}
    collection = Collection("x", PASSAGES, queries, {query: {"a": 1.0} for query in list(queries)[:40]})
    assert len(pick_queries(collection, None)) == 40
    assert list(pick_queries(collection, 10)) == list(queries)[:10]


def test_a_collection_is_filled_up_with_its_own_words() -> None:
    larger = enlarge(PASSAGES, 5)
    assert larger[:2] == PASSAGES
    assert [sorted(passage.text.split()) for passage in larger[2:]] == [
        sorted(PASSAGES[number % 2].text.split()) for number in range(3)
    ]
    assert len({passage.id for passage in larger}) == 5
    assert enlarge(PASSAGES, None) == PASSAGES


@pytest.mark.parametrize(
    "text", ["1. a *b* _c_ # d [e](f) <g> `h` | i\\j", "- x\n+ y", "a & b &amp; c", "~ $2 = 3: ok!"]
)
def test_text_passes_through_markdown_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "passage.md"
    path.write_text(f"# {'Title 2*3'.translate(SPECIAL)}\n\n{text.translate(SPECIAL)}\n")
    document = load_document(path)
    assert " ".join(text.split()) in " ".join(document.text.split())
    assert document.sections[-1].heading == "Title 2*3"


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_queries: wanted 1 or more, found 0"):
        BenchConfig(max_queries=0)


def test_the_figures_come_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    arm = {"ndcg_at_10": 0.5, "recall_at_10": 0.6, "mrr_at_10": 0.4, "p50_ms": 3.0, "p99_ms": 9.0}
    figures = {"dataset": "x", "passages": 2, "queries": 1, "ingest_docs_per_s": 9.5, "arms": {"hybrid": arm}}
    show(figures, Output.json)
    assert json.loads(capsys.readouterr().out) == figures
    show(figures, Output.markdown)
    assert "| hybrid | 0.5000 | 0.6000 | 0.4000 | 3.0 | 9.0 |" in capsys.readouterr().out
