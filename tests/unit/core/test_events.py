"""core.events: what is written is read back, and a kill costs at most the line being written."""

import resource
from pathlib import Path

import pytest

from core.errors import StorageFull
from core.events import EventWriter, read_events


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    with EventWriter(path) as events:
        events.write("step", step=1, loss=2.5)
        events.write("done", steps=1)
    found = list(read_events(path))
    assert [event["type"] for event in found] == ["step", "done"]
    assert found[0]["loss"] == 2.5
    assert found[0]["time"] <= found[1]["time"]


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events, pytest.raises(ValueError, match="wanted one of step, eval"):
        events.write("stepp", step=1)


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_half_written_line_is_left_out_and_overwritten(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write("log", message="one")
        whole = path.stat().st_size
        events.write("log", message="two")
    with path.open("rb+") as file:
        file.truncate(whole + cut)
    assert [event["message"] for event in read_events(path)] == ["one"]
    with EventWriter(path) as events:
        events.write("log", message="three")
    assert [event["message"] for event in read_events(path)] == ["one", "three"]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventWriter(path) as events:
        events.write("log", message="one")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
            with pytest.raises(StorageFull, match="Free some disk space"):
                events.write("log", message="two")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes().endswith(b"}\n")
        events.write("log", message="three")
    assert [event["message"] for event in read_events(path)] == ["one", "three"]
