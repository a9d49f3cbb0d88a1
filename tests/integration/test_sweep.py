"""scripts/sweep.py before the real gateway and search and a fake vLLM: interrupted, resumed, nothing asked twice."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from scripts import sweep
from scripts.verdict_plan import ASSISTANTS
from serve.answering import AssistantConfig
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.hash_embedder import HashEmbedder

ITEMS = ("amber", "birch", "cedar", "delta", "ember", "flint")
RAG = AssistantConfig(model=BASE, stores=["tools"], k=2, min_score=-1.0)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway with the assistant that a trial asks."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for number, item in enumerate(ITEMS):
        (documents / f"{item}.md").write_text(f"# {item}\n\nThe warranty of {item} is {number + 3} months.\n")
    data, embedder = DataDir(tmp_path / "gateway"), HashEmbedder()
    ingest(data, "tools", documents, embedder=embedder, chunking=ChunkingConfig(), parsing=ParsingConfig())
    searcher = Searcher(data, make_embedder=HashEmbedder)
    try:
        with running_gateway(data.root, assistants={ASSISTANTS["rag"]: RAG}, stores=searcher) as running:
            yield running
    finally:
        searcher.close()


def run(tmp_path: Path, *more: str) -> Path:
    """Run the program; return the report's folder."""
    questions = tmp_path / "items.jsonl"
    rows = [{"id": item, "question": f"What is the warranty of {item}?", "accept": [item]} for item in ITEMS]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"questions={questions}", f"paths.data_dir={tmp_path / 'data'}", "store=tools", f"base={BASE}",
                 "trials=3", "max_tokens=30", "timeout_s=20", *more]  # fmt: skip
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        sweep.main(compose("sweep", overrides=overrides))
    return tmp_path / "data" / "reports" / "sweep-items"


def test_a_study_is_interrupted_and_goes_on(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not there: the environment is behind its lock, run make setup")
    model = DataDir(tmp_path / "data").model(BASE)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    started: list[Sequence[str]] = []

    @contextmanager
    def serve(options: Sequence[str], _log: Path) -> Iterator[str]:
        started.append(options)
        if len(started) == 2:
            raise KeyboardInterrupt
        yield gateway.url

    monkeypatch.setattr(sweep, "run_server", serve)
    gateway.script()  # the fake repeats the question, which holds what is accepted
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    folder = run(tmp_path)
    assert len(started) == 4
    assert started[1] == started[2]  # what was broken off is tried again with its settings
    assert started[3] not in started[:3]
    report: Any = json.loads((folder / "report.json").read_text())
    assert [one["quality"]["mean"] for one in report["trials"]] == [1.0, 1.0, 1.0]
    weights = [one["settings"]["dense_weight"] for one in report["trials"]]
    finished = (started[0], started[2], started[3])
    assert all(f"search.dense_weight={one}" in options for one, options in zip(weights, finished, strict=True))
    said = " ".join(capsys.readouterr().out.split())
    assert "next, on other questions: python scripts/verdict.py questions=OTHERS.jsonl store=tools" in said

    answers = [path.read_text().splitlines() for path in folder.glob("trial-*.jsonl")]
    assert [len(lines) for lines in answers] == [1 + len(ITEMS)] * 3
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert (run(tmp_path) / "report.html").read_bytes() == before
    assert len(started) == 4  # everything was answered: nobody was served or asked
