"""A run's scratch folder is new at its start and gone at its end, and only the first process touches it."""

from pathlib import Path

import pytest

from train.scratch import hold_scratch, wait_for


def test_it_is_new_and_goes_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "tokens" / "old").mkdir(parents=True)
    with hold_scratch(tmp_path / "tokens") as own:
        assert list((tmp_path / "tokens").iterdir()) == [own]
        (own / "x").write_text("x")
    assert not (tmp_path / "tokens").exists()


def test_it_goes_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_scratch(tmp_path / "tokens"):
        raise KeyboardInterrupt
    assert not (tmp_path / "tokens").exists()


def test_other_processes_share_it_and_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_scratch(tmp_path / "tokens") as first:
        (first / "x").write_text("x")
        monkeypatch.setenv("LOCAL_RANK", "1")
        with hold_scratch(tmp_path / "tokens") as second:
            assert second == first
            wait_for(second / "x")
        assert (first / "x").exists()
        monkeypatch.delenv("LOCAL_RANK")
    assert not first.exists()


def test_other_machines_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens" / "1-77").mkdir(parents=True)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with hold_scratch(tmp_path / "tokens") as own:
        assert own.name.startswith("0-")
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["1-77"]
