"""core.events: what is written is read back, and a kill costs at most the line being written."""

import resource
from pathlib import Path

import pytest

from core.errors import StorageFull
from core.events import EventWriter, find_events_since, read_event_at, read_events, read_events_back


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


def test_time_never_falls_whatever_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    clock = iter([10.0, 20.0, 15.0, 21.0, 5.0, 30.0])
    monkeypatch.setattr("core.events.time.time", lambda: next(clock))
    for _ in range(2):  # a run that is resumed
        with EventWriter(path) as events:
            for _ in range(3):
                events.write("log", message="m")
    assert [event["time"] for event in read_events(path)] == [10.0, 20.0, 20.0, 21.0, 21.0, 30.0]


def test_events_are_found_by_place_and_by_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    moments = [1.0, 2.0, 2.0, 2.0, 5.0, 9.0]
    path.write_text("".join(f'{{"time": {at}, "message": "{"m" * round(at * 9)}"}}\n' for at in moments))
    found = list(read_events_back(path))[::-1]
    assert [event["time"] for _, event in found] == moments
    for moment in (0.0, 1.0, 1.5, 2.0, 3.0, 9.0, 10.0):
        later = [place for place, event in found if event["time"] >= moment]
        assert find_events_since(path, moment) == (later[0] if later else path.stat().st_size)
    at_places = {place: read_event_at(path, place) for place in range(path.stat().st_size + 2)}
    assert {place: event for place, event in at_places.items() if event is not None} == dict(found)
    missing = tmp_path / "none.jsonl"
    assert (find_events_since(missing, 1.0), read_event_at(missing, 0), list(read_events_back(missing))) == (
        0,
        None,
        [],
    )


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
