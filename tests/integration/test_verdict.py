"""scripts/verdict.py before the real gateway and search and a fake vLLM: asked once, resumed, the same report twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR
from core.errors import EngineUnavailable
from core.layout import DataDir
from evaluation.answers import read_answers
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from scripts.verdict import main
from serve.answering import AssistantConfig
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.hash_embedder import HashEmbedder

HELPER = AssistantConfig(model=BASE, stores=["acme"], k=2, min_score=-1.0)
ITEMS = {f"item {word}": f"{7 * place + 3} months" for place, word in enumerate(
    ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "hazel", "inlet", "jetty", "kiosk", "larch",
     "maple", "north", "ocean", "plume", "quartz", "river", "stone", "thorn", "umber", "vault", "wharf"))}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway over a store that holds the warranty of two dozen items."""
    folder = tmp_path_factory.mktemp("verdict")
    documents = folder / "documents"
    documents.mkdir()
    for item, months in ITEMS.items():
        text = f"# Warranty of {item}\n\nThe warranty of {item} is {months}.\n"
        (documents / f"{item.replace(' ', '-')}.md").write_text(text)
    embedder = HashEmbedder()
    ingest(DataDir(folder), "acme", documents, embedder=embedder, chunking=ChunkingConfig(), parsing=ParsingConfig())
    searcher = Searcher(DataDir(folder), make_embedder=HashEmbedder)
    try:
        with running_gateway(folder, assistants={"helper": HELPER}, stores=searcher) as running:
            yield running
    finally:
        searcher.close()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A question about each item."""
    path = tmp_path / "items.jsonl"
    rows = [
        {"id": f"q{place}", "question": f"What is the warranty of {item}?", "accept": [months],
         "file": f"{item.replace(' ', '-')}.md"}
        for place, (item, months) in enumerate(ITEMS.items())
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, questions: Path, url: str, *more: str) -> Path:
    """Run the program; return the report's folder."""
    overrides = [
        f"questions={questions}", f"paths.data_dir={tmp_path / 'data'}", f"url={url}", "store=acme", "max_tokens=30",
        f"+arms.base={BASE}", "+arms.rag=helper", "nearest_pattern='is (.+)\\.'", "latency_questions=3",
        "decision.resamples=1000", "timeout_s=20", *more,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        main(compose("verdict", overrides=overrides))
    return tmp_path / "data" / "reports" / "verdict-items"


def read_report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def test_the_nearest_passage_wins_where_the_model_only_repeats(
    gateway: RunningGateway, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script()  # the fake repeats the question
    folder = run(tmp_path, questions, gateway.url)
    report = read_report(folder)
    assert (report["verdict"]["outcome"], report["verdict"]["arm"]) == ("decided", "nearest")
    assert report["verdict"]["means"]["nearest"]["mean"] == 1.0
    assert report["verdict"]["means"]["base"]["mean"] == 0.0
    assert {one["arm"] for one in report["costs"]} == {"base", "rag", "nearest"}
    nearest = read_answers(folder / "nearest.jsonl")
    assert [answer.text for answer in nearest] == list(ITEMS.values())
    said = " ".join(capsys.readouterr().out.split())
    assert "Use the nearest passage, without a model: right in 100%" in said
    assert "advise.py --verdict" in said

    asked = len(gateway.state()["requests"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(tmp_path, questions, gateway.url)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the same answers, another report"
    assert len(gateway.state()["requests"]) == asked, "something was asked twice"
    run(tmp_path, questions, "http://127.0.0.1:9")  # nothing is open: nobody has to be there


def test_a_run_that_was_stopped_goes_on(gateway: RunningGateway, tmp_path: Path, questions: Path) -> None:
    gateway.script()
    folder = run(tmp_path, questions, gateway.url)
    whole = read_report(folder)["verdict"]
    for name, kept in (("answers", 20), ("alone", 1), ("nearest", 5)):
        lines = (folder / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[: 1 + kept]) + lines[1 + kept][:40])
    with pytest.raises(EngineUnavailable):
        run(tmp_path, questions, "http://127.0.0.1:9")
    run(tmp_path, questions, gateway.url)
    assert read_report(folder)["verdict"] == whole
    assert len(read_answers(folder / "answers.jsonl")) == 2 * len(ITEMS)


def test_shuffled_gold_is_named_in_the_report(gateway: RunningGateway, tmp_path: Path, questions: Path) -> None:
    gateway.script()
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    golds = [row["accept"] for row in rows]
    for row, gold in zip(rows, golds[1:] + golds[:1], strict=True):
        row["accept"] = gold
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(tmp_path, questions, gateway.url)
    assert "look shuffled" in read_report(folder)["doubts"][0]
    assert "look shuffled" in (folder / "report.html").read_text()
