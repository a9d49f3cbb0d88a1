"""Jobs of a sweep have names of their own, a failed one is told from the others, and a signal waits for its child."""

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from core.events import EventWriter
from train.sweep import SweepTable, is_sweep, name_job, read_result, render_table, run_child

GOOD = {"run_id": "rank-1", "values": ["lora.rank=16"], "code": 0, "steps": 3, "loss_last": 1.0, "eval_loss": 2.0}


def test_no_two_jobs_share_a_name() -> None:
    assert [name_job("rank", number) for number in (0, 1)] == ["rank-0", "rank-1"]


def test_a_plain_run_is_no_sweep() -> None:
    assert not is_sweep()


def test_the_best_job_stands_first_and_a_failed_one_last() -> None:
    worse = {**GOOD, "run_id": "rank-0", "eval_loss": 2.5, "seconds": 12.3}
    failed = {"run_id": "rank-2", "values": ["lora.rank=64"], "code": 3}
    rows = render_table([failed, worse, GOOD]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| rank-1", "| rank-0", "| rank-2"]
    assert "| 1.0000 | 2.0000 |" in rows[0]
    assert "failed (3)" in rows[2]


@pytest.mark.parametrize("code", [0, 3])
def test_the_table_ends_with_the_right_code(tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int) -> None:
    for number in (10, 9):
        (tmp_path / str(number)).mkdir()
        outcome = {**GOOD, "run_id": f"rank-{number}", "code": code if number == 9 else 0}
        (tmp_path / str(number) / "outcome.json").write_text(json.dumps(outcome))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    if code:
        with pytest.raises(SystemExit):
            SweepTable().on_multirun_end(config)
    else:
        SweepTable().on_multirun_end(config)
    assert "| rank-10 |" in capsys.readouterr().out


def test_a_result_is_read_from_the_events(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    with EventWriter(tmp_path / "events.jsonl") as events:
        events.write("done", steps=2, loss_last=1.5, eval_loss=None, seconds=4.0, tokens=9)
    assert read_result(tmp_path) == {"steps": 2, "loss_last": 1.5, "eval_loss": None, "seconds": 4.0}


def test_a_child_ends_with_its_own_code() -> None:
    assert run_child([sys.executable, "-c", "raise SystemExit(5)"]) == 5
