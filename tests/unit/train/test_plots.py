"""Every figure that the events have values for is drawn, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from train.plots import draw_plots, smooth

STEP: dict[str, Any] = {"loss": 2.0, "learning_rate": 1e-4, "tokens_per_s": 100.0, "memory_bytes": 2**30}


@pytest.mark.parametrize("count", [1, 60])
def test_the_figures_follow_the_events(tmp_path: Path, count: int) -> None:
    steps = [{**STEP, "step": step + 1} for step in range(count)]
    files = draw_plots(tmp_path, steps, [], [3, 4, 400], None)
    assert files == ["loss.png", "learning_rate.png", "tokens_per_s.png", "memory.png", "lengths.png"]
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in files)
    pairs = [{**step, "margin": 0.1} for step in steps]
    evaluations = [{"step": 0, "loss": 0.7, "margin": 0.0}, {"step": 1, "loss": 0.5, "margin": 0.4}]
    assert "margin.png" in draw_plots(tmp_path, pairs, evaluations, [], 1)


def test_steps_of_an_older_run_have_no_memory(tmp_path: Path) -> None:
    steps = [{key: value for key, value in STEP.items() if key != "memory_bytes"} | {"step": 1}]
    assert "memory.png" not in draw_plots(tmp_path, steps, [], [], None)


def test_a_running_mean_follows_slowly() -> None:
    assert smooth([1.0, 1.0, 1.0]) == pytest.approx([1, 1, 1])
    assert smooth([0.0, 1.0])[-1] == pytest.approx(1 / 1.9)
