"""evaluation.searches before the real gateway and the real search: known rankings have known figures."""

import json
import math
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR
from core.errors import EngineUnavailable, NotFound
from core.layout import DataDir
from evaluation.answers import AskConfig, Passage
from evaluation.questions import Question
from evaluation.searches import Search, measure_searches, search_all
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from scripts.evaluate import main
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, searching_gateway
from tests.fakes.hash_embedder import HashEmbedder

ITEMS = ("anvil", "bellows", "chisel", "drill", "easel")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway over a store of five documents."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "source").mkdir()
    for item in ITEMS:
        (folder / "source" / f"{item}.md").write_text(f"The {item} of the workshop is kept beside the {item} shelf.\n")
    embedder = HashEmbedder()
    ingest(
        DataDir(folder),
        "tools",
        folder / "source",
        embedder=embedder,
        chunking=ChunkingConfig(),
        parsing=ParsingConfig(),
    )
    with searching_gateway(folder) as running:
        yield running


def test_a_store_is_searched_with_every_question(gateway: RunningGateway) -> None:
    questions = [Question(item, f"Where is the {item}?", accept=("shelf",), files=(f"{item}.md",)) for item in ITEMS]
    questions.append(Question("none", "Where is the anvil?", accept=("shelf",)))
    searches = search_all(questions, "tools", AskConfig(url=f"{gateway.url}/v1", retries=0))
    assert [search.question_id for search in searches] == [*ITEMS, "none"]
    assert [search.hits[0].file for search in searches[:5]] == [f"{item}.md" for item in ITEMS]
    assert searches[0].hits[0].text == "The anvil of the workshop is kept beside the anvil shelf."
    quality = measure_searches(questions, searches, "tools")
    assert (quality.n, quality.without, quality.recall[1], quality.ndcg_at_10, quality.mrr_at_10) == (
        5,
        1,
        1.0,
        1.0,
        1.0,
    )
    assert quality.latency_p50_s is not None


def test_the_report_holds_what_the_store_is_worth_by_itself(
    gateway: RunningGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("report")
    rows = [{"id": item, "question": f"Where is the {item}?", "accept": ["x"], "file": f"{item}.md"} for item in ITEMS]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"questions={folder}/q.jsonl", f"served_model={BASE}", f"url={gateway.url}/v1", "judge=none"]
    overrides += ["store=tools", "at_least={store_recall_at_1: 1.0}", f"paths.data_dir={folder}", "name=r"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        main(compose("evaluate", overrides=overrides))
    report = json.loads((folder / "reports" / "r" / "report.json").read_text())
    assert (report["figures"]["store_recall_at_1"], report["searched"]["n"]) == (1.0, 5)
    assert len((folder / "reports" / "r" / "searches.jsonl").read_text().splitlines()) == 5
    assert "Retrieval by itself" in (folder / "reports" / "r" / "report.html").read_text()


def test_a_store_or_server_that_is_not_there_is_named(gateway: RunningGateway) -> None:
    questions = [Question("q", "Where?", accept=("x",))]
    with pytest.raises(NotFound, match="wanted nothing at"):
        search_all(questions, "nothing", AskConfig(url=f"{gateway.url}/v1", retries=0))
    with pytest.raises(EngineUnavailable):
        search_all(questions, "tools", AskConfig(url="http://127.0.0.1:9/v1", retries=0))


def test_known_rankings_have_known_figures() -> None:
    def find(*files: str) -> tuple[Passage, ...]:
        return tuple(
            Passage(n, "s", file, None, None, f"{file} {n}", 0.5, 0, 0, f"{file}{n}") for n, file in enumerate(files, 1)
        )

    questions = [
        Question("first", "?", accept=("x",), files=("a",)),
        Question("second", "?", accept=("x",), files=("b", "c")),
        Question("missed", "?", accept=("x",), files=("d",)),
        Question("chunk", "?", accept=("x",), chunks=("chunk-1",)),
    ]
    searches = [
        Search("first", find("a", "a", "b"), 0.1),
        Search("second", find("x", "x", "b", "y", "z", "c"), 0.2),
        Search("missed", (), 0.3),
        Search("chunk", find("a"), 0.4),
    ]
    quality = measure_searches(questions, searches, "s")
    assert (quality.n, quality.without) == (3, 1)
    assert quality.recall == {
        1: pytest.approx(1 / 3),
        3: pytest.approx(0.5),
        5: pytest.approx(2 / 3),
        10: pytest.approx(2 / 3),
    }
    second = (1 / math.log2(3) + 1 / math.log2(6)) / (1 + 1 / math.log2(3))  # «x» counts once: ranks 2 and 5
    assert quality.ndcg_at_10 == pytest.approx((1 + second) / 3)
    assert quality.mrr_at_10 == pytest.approx((1 + 0.5) / 3)
    assert (quality.latency_p50_s, quality.latency_p95_s) == (0.2, 0.4)
