"""A study stays in its space, goes on after a kill with the same settings, and never mixes what cannot be compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, InputError
from core.layout import DataDir
from evaluation.pareto import TrialResult
from evaluation.questions import Question
from evaluation.resampling import Interval
from scripts.sweep import (
    SpaceConfig,
    SweepConfig,
    describe_study,
    is_answered,
    list_results,
    name_run,
    open_study,
    suggest,
    train,
    write_command,
)
from tests.fakes.noting_python import HOSTILE_FOLDER, read_notes, write_noting_python
from tests.fakes.saved_answers import make_answer

QUESTIONS = [Question("q1", "What?", answers=("that",)), Question("q2", "Who?", answers=("she",))]
TRAIN = ["experiment=acme_cpu"]
INTERVAL = Interval(0.5, 0.1, 0.9, 2, 0.95)


def make_config(**values: Any) -> SweepConfig:
    return SweepConfig(**{"questions": "q.jsonl", "store": "docs", "base": "small"} | values)


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ConfigError, match="either base"):
        make_config(train=TRAIN)
    with pytest.raises(ConfigError, match="trials: wanted at least 1"):
        make_config(trials=0)
    with pytest.raises(ConfigError) as fault:
        SpaceConfig(k=[3, 1], dense_weight=[0.0, 2.0], rank=[], epochs=[1.0])
    for key in ("k", "dense_weight", "rank", "epochs"):
        assert f"space.{key}: wanted" in fault.value.message


@pytest.mark.parametrize("train", [None, TRAIN])
def test_trials_stay_in_their_space_and_a_killed_one_is_tried_again(tmp_path: Path, train: list[str] | None) -> None:
    pytest.importorskip("optuna", reason="optuna is not there: the environment is behind its lock, run make setup")
    config = make_config(train=train, base=None if train else "small")
    shared = describe_study(config, QUESTIONS)
    study = open_study(tmp_path, config, shared)
    tried = []
    for number in range(6):
        tried.append(settings := suggest(trial := study.ask(), config))
        assert 1 <= settings["k"] <= 6
        assert 0 <= settings["dense_weight"] <= 1
        assert set(settings) == {"k", "dense_weight"} | ({"rank", "learning_rate", "epochs"} if train else set())
        assert not train or settings["rank"] in {8, 16}
        trial.set_user_attr("quality", asdict(INTERVAL))
        study.tell(trial, [0.1 * number, 1.0])
    killed = suggest(study.ask(), config)
    again = open_study(tmp_path, config, shared)
    assert [one.settings for one in list_results(again)] == tried  # as they were tried, to the digit
    assert list_results(again)[0].quality == INTERVAL
    assert suggest(again.ask(), config) == killed
    assert suggest(again.ask(), config) not in [*tried, killed]  # a new session draws something new


def test_a_study_under_other_conditions_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not there: the environment is behind its lock, run make setup")
    config = make_config()
    open_study(tmp_path, config, describe_study(config, QUESTIONS))
    cases: list[tuple[dict[str, Any], list[Question]]] = [
        ({"store": "others"}, QUESTIONS),
        ({"base": "large"}, QUESTIONS),
        ({"max_tokens": 7}, QUESTIONS),
        ({"serve": ["search.kind=dense"]}, QUESTIONS),
        ({"space": SpaceConfig(k=[2, 3])}, QUESTIONS),
        ({}, QUESTIONS[:1]),
        ({}, [QUESTIONS[0], Question("q2", "Who?", answers=("he",))]),
    ]
    for changes, questions in cases:
        other = make_config(**changes)
        with pytest.raises(ConfigError, match="Give another name"):
            open_study(tmp_path, other, describe_study(other, questions))
    open_study(tmp_path, config, describe_study(make_config(trials=50), QUESTIONS))  # more trials are welcome


def test_a_run_is_taken_for_its_own_training_only() -> None:
    settings = {"k": 3, "dense_weight": 0.5, "rank": 8, "learning_rate": 1e-3, "epochs": 1.0}
    config = make_config(train=TRAIN, base=None)
    assert name_run(config, "s", settings) == name_run(config, "s", settings | {"k": 5, "dense_weight": 0.1})
    assert name_run(config, "s", settings) != name_run(config, "s", settings | {"rank": 16})
    longer = make_config(train=[*TRAIN, "trainer.max_steps=9"], base=None)
    assert name_run(config, "s", settings) != name_run(longer, "s", settings)


def test_a_training_that_fails_is_said_to_have_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    settings = {"rank": 8, "learning_rate": 1e-3, "epochs": 1.0}
    with pytest.raises(InputError, match=r"found exit code 1; .* goes on without these settings"):
        train(make_config(train=TRAIN, base=None), DataDir(tmp_path), "run", settings)


def test_a_training_is_told_of_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(write_noting_python(tmp_path)))
    data = DataDir(tmp_path / HOSTILE_FOLDER)
    train(make_config(train=TRAIN, base=None), data, "run", {"rank": 8, "learning_rate": 1e-3, "epochs": 1.0})
    ((_, told),) = read_notes(tmp_path)
    assert told["paths"]["data_dir"] == str(data.root)


def test_answers_count_only_when_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "trial.jsonl"
    assert not is_answered(path, QUESTIONS)
    lines = [json.dumps({"format": "loam-answers-1", "settings": {}})]
    lines += [json.dumps(asdict(make_answer(one, "rag", is_right=True))) for one in QUESTIONS]
    path.write_text("\n".join(lines) + "\n")
    assert is_answered(path, QUESTIONS)
    failed = make_answer(QUESTIONS[1], "rag", is_right=False, error="timeout: none")
    path.write_text("\n".join([*lines, json.dumps(asdict(failed))]) + "\n")
    assert not is_answered(path, QUESTIONS)


def test_the_next_command_has_the_settings_of_the_winner() -> None:
    settings = {"k": 3, "dense_weight": 0.25, "rank": 8, "learning_rate": 1e-3, "epochs": 1.0}
    winner = TrialResult(4, settings, INTERVAL, 1.0)
    command = write_command(make_config(train=TRAIN, base=None, instructions="say.txt"), "s", winner)
    assert f"store=docs run={name_run(make_config(train=TRAIN, base=None), 's', settings)} k=3" in command
    assert " instructions=say.txt max_tokens=256 " in command
    assert command.endswith("""'serve=["search.use_tuned=false","search.dense_weight=0.25"]'""")
    assert " base=small k=3 " in write_command(make_config(), "s", winner)
