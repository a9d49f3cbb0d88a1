"""scripts/journey.py: a step that does not hold ends it with one sentence; make test-airgap runs it whole."""

from pathlib import Path

import pytest

from core.errors import ContractError, NotFound
from core.formats import Columns, DataFormat
from scripts import journey
from scripts.check_data import check
from tests.fakes.engine import BASE
from tests.fakes.gateway import running_gateway


def test_a_model_that_does_not_speak_as_it_was_taught_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey, "BASE_MODEL", BASE)
    with running_gateway(tmp_path, trains=True) as gateway, pytest.raises(ContractError) as refusal:
        journey.train_by_job(gateway.client())  # the scripted vLLM repeats the question, whatever was trained
    assert f"ft:{BASE}:local:journey:" in refusal.value.message
    assert "begins with 'Stock desk:', found 'What is item 60?'" in refusal.value.message


def test_its_chats_are_good_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chats.jsonl").write_bytes(journey.write_chats())
    assert check(tmp_path / "chats.jsonl", DataFormat.auto, Columns()) == 0
    assert f"{journey.TRAINED_ITEMS} good rows, 0 faults" in capsys.readouterr().out


def test_without_the_demo_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["journey.py", "--data-dir", str(tmp_path)])
    with pytest.raises(NotFound, match="make demo"):
        journey.walk()
