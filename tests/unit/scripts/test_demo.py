"""Whatever the data directory is called, each stage of the demo and of the journey works in that one."""

from pathlib import Path

import pytest

from core.events import EventWriter
from core.layout import DataDir
from scripts import demo, journey
from tests.fakes.noting_python import HOSTILE_FOLDER, read_notes, read_overrides, write_noting_python


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDir:
    """A data directory with a name that Hydra's grammar has words for; stages are noted instead of run."""
    monkeypatch.setattr("sys.executable", str(write_noting_python(tmp_path)))
    return DataDir(tmp_path / HOSTILE_FOLDER)


def test_its_stages_are_told_of_the_data_directory(data: DataDir, tmp_path: Path) -> None:
    run = data.run(demo.RUN_ID)
    run.mkdir(parents=True)
    with EventWriter(run / "events.jsonl") as events:
        events.write("done", steps=1, loss_first=2.0, loss_last=1.0, tokens_per_s=3.0)
    assert demo.ingest(data)["chunks"] == 2
    assert demo.train(data)["steps"] == 1
    calls = read_notes(tmp_path)
    assert [program for program, _ in calls] == ["retrieval/run.py", "retrieval/run.py", "train/run.py"]
    assert {told["paths"]["data_dir"] for _, told in calls} == {str(data.root)}
    assert calls[0][1]["source"] == str(demo.EXAMPLE / "documents")


def test_its_server_is_told_of_the_data_directory(data: DataDir, capsys: pytest.CaptureFixture[str]) -> None:
    told = read_overrides("serve/run.py", demo.list_serve_options(data))
    assert told["paths"]["data_dir"] == str(data.root)
    assert told["assistants"]["acme_hybrid"]["instructions"] == demo.INSTRUCTIONS


def test_the_journeys_evaluation_is_told_of_the_data_directory(data: DataDir, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"report\.json"):  # which the noted stage has not written
        journey.evaluate("http://127.0.0.1:1", data)
    ((_, told),) = read_notes(tmp_path)
    assert told["paths"]["data_dir"] == str(data.root)
    assert told["questions"] == str(demo.EXAMPLE / "questions.jsonl")
