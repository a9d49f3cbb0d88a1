"""What a run will take, for programs: the figures that people are shown; what does not fit is told, not refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import ConfigError
from tests.fakes.trainer import Trainer
from train.config import Choice, HardwareConfig, MethodConfig, MethodKind, Output, TrainConfig, TrainerConfig
from train.duration import estimate_run
from train.encoding import Encoded
from train.estimate import estimate_needs
from train.footprint import GIB, Shape
from train.hardware import Machine
from train.tokens import Example

SHAPE = Shape(64, 128, 2, 4, 2, 16, 1000, has_tied_head=True)
CONFIG = TrainConfig(trainer=TrainerConfig(batch_size=4), hardware=HardwareConfig(micro_batch=2))


def make_machine(memory_bytes: int) -> Machine:
    return Machine(torch.device("cpu"), "cpu", torch.float32, memory_bytes, 1)


def make_rows() -> Encoded:
    row: Example = {"input_ids": [1] * 20, "labels": [1] * 20}
    return Encoded([row] * 8, tokens=160, trained_tokens=160, longest=20)


def test_programs_get_the_figures_that_people_are_shown() -> None:
    machine = make_machine(8 * GIB)
    found = json.loads(json.dumps(estimate_needs(CONFIG, SHAPE, make_rows(), machine)))
    plan, _ = estimate_run(CONFIG, SHAPE, make_rows(), machine)
    assert (found["rows"], found["steps"], found["tokens"]) == (8, 6, 480)
    assert found["memory"]["needed_bytes"] == plan.total == sum(found["memory"]["parts"].values())
    assert found["memory"]["free_bytes"] == 8 * GIB
    assert 0 <= found["seconds"]["low"] <= found["seconds"]["high"]
    assert (found["fits"], found["remedies"]) == (True, [])


def test_a_pair_is_one_row() -> None:
    pairs = replace(CONFIG, method=MethodConfig(MethodKind.dpo, 0.1))
    found = estimate_needs(pairs, SHAPE, make_rows(), make_machine(8 * GIB))
    assert (found["rows"], found["steps"], found["tokens"]) == (4, 3, 480)


def test_what_does_not_fit_is_told_with_what_would_help() -> None:
    hardware = HardwareConfig(micro_batch=64, gradient_checkpointing=Choice.never)
    config = TrainConfig(trainer=TrainerConfig(batch_size=64), hardware=hardware)
    rows = replace(make_rows(), longest=2000)
    half = estimate_needs(config, SHAPE, rows, make_machine(64 * GIB))["memory"]["needed_bytes"] // 2
    found = estimate_needs(config, SHAPE, rows, make_machine(half))
    assert not found["fits"]
    assert found["memory"]["needed_bytes"] > half
    assert found["remedies"]
    assert all(remedy["change"] and remedy["needed_bytes"] <= half for remedy in found["remedies"])


def test_the_scripted_trainer_estimates_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file-a").write_text("{}\n" * 8)
    options = {"paths.data_dir": str(tmp_path), "run_id": "r", "data.train": "files/file-a"}
    scripted = Trainer({**options, "trainer.batch_size": "4", "trainer.epochs": "3"}).estimate()
    real = estimate_needs(CONFIG, SHAPE, make_rows(), make_machine(8 * GIB))
    assert scripted.keys() == real.keys()
    assert scripted["memory"].keys() == real["memory"].keys()
    assert scripted["memory"]["parts"].keys() == real["memory"]["parts"].keys()
    assert (scripted["rows"], scripted["steps"]) == (real["rows"], real["steps"])


def test_json_is_for_a_check_alone() -> None:
    with pytest.raises(ConfigError, match="check_only=true"):
        TrainConfig(output=Output.json)
    assert TrainConfig(output=Output.json, check_only=True).check_only
