"""Search finds by words and by meaning, tells both scores, follows other processes, and refuses bad input."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.errors import Conflict, InputError, NotFound
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig, SearchConfig
from retrieval.database import open_database
from retrieval.documents import delete_documents, read_documents
from retrieval.filters import parse_filter
from retrieval.fusion import order_chunks
from retrieval.ingest import ingest
from retrieval.proximity import LOOKED_AT, look_closer
from retrieval.searcher import CONTEXT_KEYS, HIT_KEYS, Searcher, SearchResult
from retrieval.store import find_store
from tests.fakes.hash_embedder import HashEmbedder

FILES = {
    "pump.md": "# Pump\n\nThe pump has a warranty of 26 months.\n\n## Care\n\nClean the filter every month.\n",
    "duck.md": "# Duck\n\nDucks eat grain and grass.\n\n## Water\n\nDucks swim in ponds. A pond needs no pump.\n",
    "hours.txt": "The desk is open from nine to five.",
}


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def fill(data: DataDir, store: str, files: dict[str, str], embedder: HashEmbedder | None = None) -> None:
    folder = data.root.parent / f"{store}-source"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    ingest(
        data,
        store,
        folder,
        embedder=embedder or HashEmbedder(),
        chunking=ChunkingConfig(60, overlap_tokens=16),
        parsing=ParsingConfig(),
    )


@pytest.fixture
def searcher(data: DataDir) -> Iterator[Searcher]:
    fill(data, "acme", FILES)
    searcher = Searcher(data, make_embedder=HashEmbedder)
    yield searcher
    searcher.close()


def test_a_hit_tells_all_about_its_chunk(searcher: Searcher) -> None:
    result = searcher.search(["acme"], "warranty of the pump", k=2)
    hit = result.hits[0]
    assert (hit.rank, hit.store, hit.file, hit.page, hit.heading) == (1, "acme", "pump.md", None, "Pump")
    assert hit.text == "The pump has a warranty of 26 months."
    assert (hit.start, hit.end) == (0, len(hit.text))
    assert 0 < hit.score == hit.fused_score <= 1
    assert -1 <= hit.dense_score <= 1
    assert hit.lexical_score > 0
    assert hit.rerank_score is None
    assert tuple(hit.to_json()) == HIT_KEYS
    assert [hit.rank for hit in result.hits] == [1, 2]
    (searched,) = result.searched
    assert (searched.store, searched.chunks, searched.candidates) == ("acme", 5, 5)
    assert {"refresh", "embed", "dense", "lexical", "fuse", "read", "total"} <= set(result.timings_ms)


def test_ranks_follow_the_scores_of_each_stage(searcher: Searcher) -> None:
    hits = searcher.search(["acme"], "warranty of the pump", k=5).hits
    assert len(hits) == 5
    for stage in ("dense", "fused"):
        ordered = sorted(hits, key=lambda hit: -getattr(hit, f"{stage}_score"))
        assert [getattr(hit, f"{stage}_rank") for hit in ordered] == [1, 2, 3, 4, 5]
    with_words = sorted((hit for hit in hits if hit.lexical_score), key=lambda hit: -hit.lexical_score)
    assert [hit.lexical_rank for hit in with_words] == list(range(1, len(with_words) + 1))
    without = [hit for hit in hits if not hit.lexical_score]
    assert without
    assert {hit.lexical_rank for hit in without} == {None}
    assert "reranked" not in hits[0].describe_stages()


def test_the_dense_score_is_the_cosine_whatever_the_weight(data: DataDir, searcher: Searcher) -> None:
    embedder = HashEmbedder()
    query = "what do ducks eat"
    for weight in (0.0, 0.5, 1.0):
        other = Searcher(data, search=SearchConfig(dense_weight=weight), make_embedder=HashEmbedder)
        for hit in other.search(["acme"], query, k=5).hits:
            seen = f"{hit.heading}\n{hit.text}" if hit.heading else hit.text
            cosine = float(embedder.embed_windows([seen])[0] @ embedder.embed_query(query))
            assert hit.dense_score == pytest.approx(cosine, abs=1e-5)
        other.close()


def test_hits_come_in_the_order_of_their_score_and_k_only_cuts(searcher: Searcher) -> None:
    hits = searcher.search(["acme"], "pump", k=5).hits
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert searcher.search(["acme"], "pump", k=2).hits == hits[:2]


def test_stores_are_merged_by_score(data: DataDir, searcher: Searcher) -> None:
    fill(data, "zoo", {"goose.md": "# Goose\n\nGeese eat grass all day.\n"})
    result = searcher.search(["acme", "zoo", "acme"], "who eats grass", k=10)
    assert {hit.store for hit in result.hits} == {"acme", "zoo"}
    assert [hit.rank for hit in result.hits] == list(range(1, 7))
    assert len({hit.chunk_id for hit in result.hits}) == 6
    assert [searched.store for searched in result.searched] == ["acme", "zoo"]
    assert {hit.store for hit in searcher.search(["zoo"], "pump warranty").hits} == {"zoo"}


def test_a_change_by_another_process_is_seen_by_the_next_search(data: DataDir, searcher: Searcher) -> None:
    old = searcher.search(["acme"], "warranty").hits[0]
    fill(data, "acme", {"pump.md": "# Pump\n\nThe pump has a warranty of 30 years.\n"})
    new = searcher.search(["acme"], "warranty").hits[0]
    assert new.text == "The pump has a warranty of 30 years."
    assert searcher.read_passage(new.chunk_id).text == new.text
    with pytest.raises(NotFound, match="may have been replaced"):
        searcher.read_passage(old.chunk_id)


def test_what_has_just_been_deleted_takes_nobodys_place(
    data: DataDir, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = searcher.search(["acme"], "pump", k=5).hits
    monkeypatch.setattr("retrieval.indexes.REFRESH_SHARE", 0.0)  # the index stays behind
    engine = open_database(data.database)
    acme = find_store(engine, "acme")
    delete_documents(engine, acme, [read_documents(engine, acme)[before[0].file].id])
    engine.dispose()
    left = [hit.chunk_id for hit in before if hit.file != before[0].file]
    assert [hit.chunk_id for hit in searcher.search(["acme"], "pump", k=2).hits] == left[:2]
    assert [hit.chunk_id for hit in searcher.search(["acme"], "pump", k=5).hits] == left


def test_texts_are_embedded_and_counted(searcher: Searcher) -> None:
    vectors = searcher.embed_texts(["Clean the filter.", "clean the FILTER", "grass"])
    assert vectors.shape == (3, 64)
    assert float(vectors[0] @ vectors[1]) == pytest.approx(1, abs=1e-5)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert searcher.count_tokens(["one two", ""]) == [2, 0]


@pytest.mark.parametrize(
    ("stores", "query", "k", "param"),
    [(["acme"], "  ", 5, "query"), (["acme"], "x", 0, "k"), (["acme"], "x", 1001, "k"), ([], "x", 5, "store")],
)
def test_bad_input_is_refused(searcher: Searcher, stores: list[str], query: str, k: int, param: str) -> None:
    with pytest.raises(InputError, match=f"{param}: wanted") as caught:
        searcher.search(stores, query, k)
    assert caught.value.param == param


def test_an_unknown_store_is_told_with_the_known_ones(searcher: Searcher) -> None:
    with pytest.raises(NotFound, match="wanted one of acme"):
        searcher.search(["acme", "none"], "pump")
    with pytest.raises(NotFound):
        searcher.warm_up(["none"])


def test_a_store_of_another_embedder_is_refused(data: DataDir, searcher: Searcher) -> None:
    fill(data, "other", FILES, HashEmbedder(name="other"))
    with pytest.raises(Conflict, match=r"embedder\.name=other"):
        searcher.search(["other"], "pump")


def test_an_empty_store_gives_no_hits(data: DataDir, searcher: Searcher) -> None:
    fill(data, "empty", {"bad.md": ""})
    result = searcher.search(["empty"], "pump")
    assert result.hits == []
    assert result.searched[0].chunks == 0
    assert searcher.search(["empty", "acme"], "pump").hits


def test_a_missing_model_is_told(data: DataDir, searcher: Searcher) -> None:
    plain = Searcher(data)
    assert [status.store for status in plain.list_stores()] == ["acme"]
    with pytest.raises(NotFound, match=r"scripts/models\.py --data-dir \S+/data get all-minilm-l6-v2$"):
        plain.search(["acme"], "pump")
    with pytest.raises(NotFound, match=r"search\.reranker=null"):
        Searcher(data, search=SearchConfig(reranker="none"), make_embedder=HashEmbedder).search(["acme"], "pump")


def test_threads_get_the_answers_of_one(data: DataDir, searcher: Searcher) -> None:
    queries = ["pump warranty", "ducks grass", "desk open", "clean filter"] * 20
    wanted = [searcher.search(["acme"], query).hits for query in queries]
    fresh = Searcher(data, make_embedder=HashEmbedder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda query: fresh.search(["acme"], query).hits, queries))
    assert found == wanted
    fresh.close()


def search_with(data: DataDir, query: str, k: int = 5, **options: float) -> SearchResult:
    searcher = Searcher(data, search=SearchConfig(**options), make_embedder=HashEmbedder)  # type: ignore[arg-type]
    result = searcher.search(["acme"], query, k)
    searcher.close()
    return result


def test_a_threshold_on_the_best_span_can_leave_nothing(data: DataDir, searcher: Searcher) -> None:
    query = "warranty of the pump"
    everything = searcher.search(["acme"], query).hits
    least = sorted(hit.span_score for hit in everything)[2]
    result = search_with(data, query, min_score=least)
    assert [hit.chunk_id for hit in result.hits] == [hit.chunk_id for hit in everything if hit.span_score >= least]
    assert result.below_min_score == 2
    nothing = search_with(data, query, min_score=1.0)
    assert (nothing.hits, nothing.below_min_score) == ([], 5)


def test_variety_puts_a_copy_behind_what_is_new(data: DataDir, searcher: Searcher) -> None:
    fill(data, "acme", {"copy.md": "# Pump\n\nThe pump has a warranty of 26 months!\n"})
    query = "warranty of the pump"
    assert {hit.file for hit in searcher.search(["acme"], query, k=2).hits} == {"pump.md", "copy.md"}
    varied = search_with(data, query, 2, mmr_lambda=0.3).hits
    assert [hit.rank for hit in varied] == [1, 2]
    assert {hit.file for hit in varied} != {"pump.md", "copy.md"}
    same = search_with(data, query, 3, mmr_lambda=1.0).hits
    assert same == searcher.search(["acme"], query, k=3).hits


def test_neighbours_widen_the_context_and_leave_ranks_alone(data: DataDir, searcher: Searcher) -> None:
    body = "\n\n".join(
        f"Step {number}: turn the valve of pump {number} and wait for the light." for number in range(30)
    )
    fill(data, "acme", {"long.md": f"# Valve\n\n{body}\n"})
    plain = searcher.search(["acme"], "valve of pump 17").hits
    wide = search_with(data, "valve of pump 17", neighbours=1).hits
    assert [(hit.chunk_id, hit.score, hit.text) for hit in wide] == [
        (hit.chunk_id, hit.score, hit.text) for hit in plain
    ]
    assert all(hit.context is None for hit in plain)
    hit = wide[0]
    assert hit.context is not None
    assert hit.text in hit.context
    assert len(hit.context) > len(hit.text)
    assert hit.context_end is not None
    assert hit.context_start is not None
    assert hit.context_end - hit.context_start == len(hit.context)
    assert tuple(hit.to_json()) == (*HIT_KEYS, *CONTEXT_KEYS)


def test_a_filter_chooses_before_the_best_are_taken(data: DataDir) -> None:
    files = {f"pump{number}.md": f"# Pump {number}\n\nThe pump pumps water.\n" for number in range(60)}
    rare = "---\nteam: rare\n---\n# Box\n\nA box holds three old hats.\n"
    fill(data, "acme", {**files, "rare.md": rare, "hats.txt": "Hats are worn on heads, a box is not."})
    searcher = Searcher(data, search=SearchConfig(candidates=5), make_embedder=HashEmbedder)
    wanted = parse_filter({"type": "eq", "key": "team", "value": "rare"})
    assert "rare.md" not in {hit.file for hit in searcher.search(["acme"], "the pump pumps water", k=5).hits}
    hits = searcher.search(["acme"], "the pump pumps water", k=5, filters=wanted).hits
    assert [hit.file for hit in hits] == ["rare.md"]
    other = parse_filter({"type": "in", "key": "extension", "value": [".txt", ".pdf"]})
    assert {hit.file for hit in searcher.search(["acme"], "pump", k=5, filters=other).hits} == {"hats.txt"}
    pumps = parse_filter({"type": "and", "filters": [{"type": "ne", "key": "path", "value": "pump0.md"}]})
    found = {hit.file for hit in searcher.search(["acme"], "pump", k=100, filters=pumps).hits}
    assert len(found) == 61
    assert "pump0.md" not in found
    none = parse_filter({"type": "eq", "key": "team", "value": "none"})
    assert searcher.search(["acme"], "pump", filters=none).hits == []
    searcher.close()


def test_a_filtered_search_equals_a_search_of_what_is_let_through(data: DataDir, searcher: Searcher) -> None:
    wanted = parse_filter({"type": "eq", "key": "extension", "value": ".md"})
    dense_only = Searcher(data, search=SearchConfig(dense_weight=1.0), make_embedder=HashEmbedder)
    for one in (searcher, dense_only):
        every = one.search(["acme"], "a pond needs no pump", k=100).hits
        some = one.search(["acme"], "a pond needs no pump", k=100, filters=wanted).hits
        kept = [(hit.chunk_id, hit.dense_score, hit.lexical_score) for hit in every if hit.file.endswith(".md")]
        assert sorted(kept) == sorted((hit.chunk_id, hit.dense_score, hit.lexical_score) for hit in some)
    dense_only.close()


CASES = [(0.3, 0.75, 0.075), (0.3, 1.0, 0), (0.0, 0.75, 0), (1.0, 0.0, 1)]


@pytest.mark.parametrize(("weight", "dense", "gain"), CASES)
def test_words_that_stand_in_a_chunk_as_in_the_question_rise(
    data: DataDir, weight: float, dense: float, gain: float
) -> None:
    begin = "Near the valve it has a"
    fill(data, "pairs", {"a.md": f"{begin} garden pump.", "b.md": f"{begin} pump garden."})
    config = SearchConfig(pair_weight=weight, dense_weight=dense)
    searcher = Searcher(data, search=config, make_embedder=HashEmbedder)
    hits = {hit.file: hit for hit in searcher.search(["pairs"], "the pump in a garden").hits}
    searcher.close()
    assert hits["b.md"].fused_score - hits["a.md"].fused_score == pytest.approx(gain, abs=1e-4)
    assert hits["b.md"].fused_score <= 1 + 1e-6


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_tuning_measures_what_a_search_finds(data: DataDir, weight: float) -> None:
    query, begin = "the pump in a garden", "Near the valve it has a"
    texts = {f"{number}.md": f"{begin} garden {'pond ' * number}pump." for number in range(LOOKED_AT)}
    fill(data, "pairs", {**texts, "b.md": f"{begin} pump garden."})
    config = SearchConfig(pair_weight=weight)
    searcher = Searcher(data, search=config, make_embedder=HashEmbedder)
    found = look_closer(
        searcher.gather("pairs", query), config, lambda numbers: searcher.score_pairs("pairs", query, numbers)
    )
    order, fused = order_chunks(found, config)
    hits = searcher.search(["pairs"], query, k=100).hits
    searcher.close()
    assert [hit.chunk_id for hit in hits] == [f"chunk-{found.numbers[place]}" for place in order]
    assert [hit.fused_score for hit in hits] == fused[order].tolist()
    assert (found.pairs is not None) is bool(weight)
