"""A checkpoint counts only with its marker and exactly the files that the marker names."""

from pathlib import Path

import pytest

from train.checkpoint import MARKER, find_last_complete, is_complete, mark_complete, step_of


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
