"""A run's folder belongs to one process, and its events tell how the run ended."""

import os
import resource
from pathlib import Path

import pytest
import yaml

from core.errors import ConfigError, Conflict, StorageFull
from core.events import EventWriter, read_events
from train.folder import claim_folder, read_inputs, read_steps, record_failure


def test_a_claimed_folder_holds_the_configuration(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "run", {"run_id": "mine", "name": "Grüße"}, {"data.train": "ab"}):
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"run_id": "mine", "name": "Grüße"}
        assert read_inputs(tmp_path / "run") == {"data.train": "ab"}


def test_the_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "data" / "runs" / "mine", {}, {}):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with (
        claim_folder(tmp_path / "run", {}, {}),
        pytest.raises(Conflict, match=f"process {os.getpid()} trains in"),
        claim_folder(tmp_path / "run", {}, {}),
    ):
        pytest.fail("the folder was claimed twice")
    with claim_folder(tmp_path / "run", {}, {}):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a: wanted b"), "invalid_config"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (RuntimeError("broken"), "internal_error"),
        (StorageFull("no room"), "storage_full"),
    ],
)
def test_a_failure_is_recorded_and_goes_on(tmp_path: Path, error: BaseException, code: str) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events, pytest.raises(type(error)), record_failure(events):
        raise error
    (event,) = read_events(path)
    assert (event["type"], event["code"]) == ("error", code)


def test_a_step_done_twice_counts_once(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        for step, loss in [(1, 3.0), (2, 2.0), (3, 1.5), (2, 1.9)]:
            events.write("step", step=step, loss=loss)
        events.write("log", message="not a step")
    assert [(event["step"], event["loss"]) for event in read_steps(tmp_path)] == [(1, 3.0), (2, 1.9), (3, 1.5)]
    assert [event["step"] for event in read_steps(tmp_path, last_step=2)] == [1, 2]
    assert read_steps(tmp_path / "nowhere") == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run" / ".adapter.12ab.tmp").mkdir(parents=True)
    (tmp_path / "run" / ".adapter.12ab.tmp" / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "run" / ".config.yaml.34cd.tmp").touch()
    (tmp_path / "run" / "events.jsonl").touch()
    (tmp_path / "run" / "checkpoints" / ".best.56ef.tmp").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best").mkdir()
    with claim_folder(tmp_path / "run", {}, {}):
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["best"]
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            ".lock", "checkpoints", "config.yaml", "events.jsonl", "inputs.json",
        ]  # fmt: skip


def test_a_failure_goes_on_where_its_event_finds_no_room(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventWriter(tmp_path / "events.jsonl") as events:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            with pytest.raises(StorageFull), record_failure(events):
                events.write("log", message="one")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(read_events(tmp_path / "events.jsonl")) == []
