"""A study stays in its space, goes on after a kill with the same settings, and its best are what nothing beats."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from scripts.sweep import (
    Outcome,
    SpaceConfig,
    SweepConfig,
    find_best,
    list_outcomes,
    open_study,
    suggest,
    write_results,
)


def make_config(**values: Any) -> SweepConfig:
    return SweepConfig(questions="q.jsonl", store="docs", **{"base": "small"} | values)


def test_the_best_are_those_that_nothing_beats_in_both() -> None:
    outcomes = [Outcome(n, {}, quality, seconds) for n, (quality, seconds) in enumerate(
        [(0.5, 2.0), (0.7, 3.0), (0.6, 3.0), (0.7, 4.0), (0.2, 1.0), (0.1, 1.5)])]  # fmt: skip
    assert [one.number for one in find_best(outcomes)] == [4, 0, 1]


def test_results_are_written_the_same_each_time(tmp_path: Path) -> None:
    outcomes = [Outcome(0, {"k": 1}, 0.5, 2.0), Outcome(1, {"k": 2}, 0.7, 3.0)]
    for name in ("a", "b"):
        write_results(tmp_path / name, outcomes, find_best(outcomes))
    for file in ("trials.json", "pareto.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ConfigError, match="either base"):
        make_config(train=["experiment=acme_cpu"])
    with pytest.raises(ConfigError, match="trials: wanted at least 1"):
        make_config(trials=0)
    with pytest.raises(ConfigError) as fault:
        SpaceConfig(k=[3, 1], dense_weight=[0.0, 2.0], rank=[], epochs=[1.0])
    for key in ("k", "dense_weight", "rank", "epochs"):
        assert f"space.{key}: wanted" in fault.value.message


@pytest.mark.parametrize("train", [None, ["experiment=acme_cpu"]])
def test_trials_stay_in_their_space_and_a_killed_one_is_tried_again(tmp_path: Path, train: list[str] | None) -> None:
    pytest.importorskip("optuna", reason="scripts/sweep.py needs the extra `sweep`")
    config = make_config(train=train, base=None if train else "small")
    study = open_study(tmp_path, config)
    for number in range(6):
        settings = suggest(trial := study.ask(), config)
        assert 1 <= settings["k"] <= 6
        assert 0 <= settings["dense_weight"] <= 1
        assert set(settings) == {"k", "dense_weight"} | ({"rank", "learning_rate", "epochs"} if train else set())
        assert not train or settings["rank"] in {8, 16}
        study.tell(trial, [0.1 * number, 1.0])
    killed = suggest(study.ask(), config)
    again = open_study(tmp_path, config)
    assert len(list_outcomes(again)) == 6
    assert suggest(again.ask(), config) == killed
    with pytest.raises(ConfigError, match="Give another name"):
        open_study(tmp_path, make_config(train=train, base=config.base, limit=7))
