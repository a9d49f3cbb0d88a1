"""The number of rows that is found divides the share, fits the estimate and keeps the batch."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from core.errors import ConfigError
from core.events import EventWriter, read_events
from train import micro_batch
from train.config import HardwareConfig, TrainConfig, TrainerConfig
from train.footprint import GIB, Demand, Shape
from train.hardware import Machine
from train.memory import choose_plan
from train.micro_batch import take_optimizer_memory

SHAPE = Shape(576, 1536, 30, 9, 3, 64, 49_152, has_tied_head=True)
MODEL = torch.nn.Linear(5, 3, bias=False)
ROWS: Any = [{"input_ids": [0] * length, "labels": [0] * length} for length in (5, 3, 9, 7)]


def list_candidates(gib: float, batch_size: int = 12) -> list[int]:
    config = TrainConfig(
        trainer=TrainerConfig(batch_size=batch_size, micro_batch="auto"), hardware=HardwareConfig(processes=1)
    )
    machine = Machine(torch.device("cpu"), "cpu", torch.float32, int(gib * GIB), 1)
    plan = choose_plan(SHAPE, Demand.of_config(config, 512, 4, "cpu"), machine.memory_bytes)
    return micro_batch.list_candidates(config, SHAPE, plan, 512, machine)


def test_candidates_divide_the_share_and_fit() -> None:
    assert list_candidates(64) == [1, 2, 3, 4, 6, 12]
    assert list_candidates(4)[-1] < 12


@pytest.mark.parametrize(("limit", "expected"), [(4, 4), (5, 4), (12, 12), (1, 1)])
def test_the_largest_that_runs_is_found_from_the_top(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    tried: list[int] = []
    held: list[Any] = []

    def take(model: Any) -> list[Any]:
        taken = take_optimizer_memory(model)
        held.extend(map(weakref.ref, taken))
        return taken

    def run_trial(_trainer: Any, examples: list[Any]) -> float:
        tried.append(len(examples))
        assert sum(one().nbytes for one in held) == 8 * MODEL.weight.numel(), "what AdamW keeps is held while it tries"
        if len(examples) > limit:
            raise torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr(micro_batch, "run_trial", run_trial)
    monkeypatch.setattr(micro_batch, "take_optimizer_memory", take)
    ordered = sorted(ROWS, key=lambda row: len(row["input_ids"]))
    assert micro_batch.find_largest(SimpleNamespace(model=MODEL), ordered, [1, 2, 4, 12]) == expected
    assert held
    assert all(one() is None for one in held)
    assert tried == [rows for rows in (12, 4, 2, 1) if rows >= expected]


def test_a_card_that_takes_not_one_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_trial(_trainer: Any, _examples: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(micro_batch, "run_trial", run_trial)
    with pytest.raises(ConfigError, match="not even one row of 7 tokens"):
        micro_batch.find_largest(SimpleNamespace(model=MODEL), ROWS, [1, 2])


def test_the_fastest_wins_and_a_much_slower_one_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 1.0, 2: 1.2, 4: 5.0, 8: 0.001}  # 8 is never reached
    monkeypatch.setattr(micro_batch, "run_trial", lambda _trainer, examples: seconds[len(examples)])
    assert micro_batch.find_fastest(None, ROWS, [1, 2, 4, 8]) == 2


def test_the_batch_stays_what_it_was() -> None:
    config = TrainConfig(trainer=TrainerConfig(batch_size=16, micro_batch="auto"), hardware=HardwareConfig(processes=2))
    trainer = SimpleNamespace(args=SimpleNamespace(train_batch_size=4))
    micro_batch.apply_rows(trainer, config, 4)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (4, 2)
    assert config.trainer.micro_batch == 4
    assert trainer._train_batch_size == 4


def test_what_was_found_is_written_down(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        micro_batch.record_rows(events, tmp_path, TrainConfig(trainer=TrainerConfig(micro_batch=4)))
    (event,) = read_events(tmp_path / "events.jsonl")
    assert "micro-batch of 4" in event["message"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["micro_batch"] == 4
