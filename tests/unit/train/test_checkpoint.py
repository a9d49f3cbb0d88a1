"""A checkpoint counts only with its marker and exactly the files that the marker names."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import StorageFull
from core.events import EventWriter, read_events
from train.checkpoint import (
    MARKER,
    choose_checkpoint,
    describe_full_storage,
    find_last_complete,
    is_complete,
    list_checkpoints,
    mark_complete,
    remove_checkpoint,
    rotate_checkpoints,
    step_of,
)


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"numbers")
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_the_last_whole_one_is_found_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        mark_complete(make_checkpoint(tmp_path, step))
    make_checkpoint(tmp_path, 200)
    last = find_last_complete(tmp_path)
    assert last is not None
    assert step_of(last) == 100


@pytest.mark.parametrize("damage", ["change", "remove", "add", "marker"])
def test_a_damaged_one_does_not_count(tmp_path: Path, damage: str) -> None:
    older, newer = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    mark_complete(older)
    mark_complete(newer)
    assert is_complete(newer)
    if damage == "change":
        (newer / "optimizer.pt").write_bytes(b"number")
    elif damage == "remove":
        (newer / "optimizer.pt").unlink()
    elif damage == "add":
        (newer / "extra").touch()
    else:
        (newer / MARKER).write_text("{")
    assert find_last_complete(tmp_path) == older


def test_no_folder_has_none(tmp_path: Path) -> None:
    assert find_last_complete(tmp_path / "nowhere") is None


def test_what_is_passed_over_and_why_is_recorded(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        mark_complete(make_checkpoint(checkpoints, step))
    make_checkpoint(checkpoints, 4)
    (checkpoints / "checkpoint-3" / "optimizer.pt").write_bytes(b"number5")
    (checkpoints / "checkpoint-2" / "trainer_state.json").unlink()
    with EventWriter(tmp_path / "events.jsonl") as events:
        assert choose_checkpoint(checkpoints, events) == checkpoints / "checkpoint-1"
    assert [event["message"] for event in read_events(tmp_path / "events.jsonl")] == [
        "checkpoint-4: passed over, it has no COMPLETE.json, its saving was cut off",
        "checkpoint-3: passed over, optimizer.pt has other content than was saved",
        "checkpoint-2: passed over, trainer_state.json is missing",
        "checkpoint-1: whole, going on from here",
    ]


def test_a_fresh_run_has_nothing_to_choose(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        assert choose_checkpoint(tmp_path / "checkpoints", events) is None
    assert list(read_events(tmp_path / "events.jsonl")) == []


@pytest.mark.parametrize(
    ("damaged", "best", "kept"),
    [
        ([], None, [15, 20]),
        ([], 5, [5, 15, 20]),
        ([15], None, [10, 20]),
        ([5, 10, 15], None, [20]),
        ([25], None, [15, 20]),
    ],
)
def test_older_ones_go_but_never_the_last_whole_ones(
    tmp_path: Path, damaged: list[int], best: int | None, kept: list[int]
) -> None:
    for step in {5, 10, 15, 20, *damaged}:
        mark_complete(make_checkpoint(tmp_path, step))
    for step in damaged:
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    rotate_checkpoints(tmp_path / "checkpoint-20", tmp_path / f"checkpoint-{best}" if best else None, 2)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == kept[::-1]


def test_a_removed_one_is_gone(tmp_path: Path) -> None:
    remove_checkpoint(make_checkpoint(tmp_path, 1))
    assert list_checkpoints(tmp_path) == []


def write_with_torch(path: Path) -> None:
    torch.save(torch.zeros(10_000), path)


def write_with_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(10_000)}, path)


@pytest.mark.parametrize(
    "write", [write_with_torch, write_with_safetensors, lambda path: path.write_bytes(b"x" * 40_000)]
)
def test_a_full_disk_has_one_name_whoever_writes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(StorageFull, match="Could not write it"), describe_full_storage("write it"):
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_another_error_keeps_its_name() -> None:
    with pytest.raises(RuntimeError, match="shapes"), describe_full_storage("write it"):
        raise RuntimeError("shapes differ")


def test_all_checkpoints_stay_when_asked(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        make_checkpoint(tmp_path, step)
    rotate_checkpoints(tmp_path / "checkpoint-15", None, None)
    assert len(list_checkpoints(tmp_path)) == 3
