"""The time estimate counts what a frozen base needs, and says it in units that people use."""

import pytest
import torch

from train.config import HardwareConfig, LoraConfig, MethodConfig, MethodKind, TrainConfig, TrainerConfig
from train.duration import count_work, describe_range, estimate_run, probe_rate
from train.encoding import Encoded
from train.footprint import GIB, Shape
from train.hardware import Machine
from train.tokens import Example

SHAPE = Shape(64, 128, 2, 4, 2, 16, 1000, has_tied_head=True)
MACHINE = Machine(torch.device("cpu"), "cpu", torch.float32, 8 * GIB, 1)


def test_a_frozen_base_needs_four_operations_a_weight_and_token() -> None:
    config = TrainConfig(lora=LoraConfig(rank=1), trainer=TrainerConfig(epochs=1, batch_size=4))
    work = count_work(config, SHAPE, [10] * 8, 0, is_recomputed=False)
    adapter, attention = SHAPE.adapter_parameters(1), 3 * 4 * 64 * 2 * 8 * 100
    assert (work.steps, work.tokens) == (2, 80)
    assert work.operations == 80 * (4 * SHAPE.linear_parameters + 6 * adapter) + attention
    more = count_work(config, SHAPE, [10] * 8, 0, is_recomputed=True)
    assert 1.3 < more.operations / work.operations < 1.6


def test_steps_are_those_of_epochs_and_of_the_limit() -> None:
    whole = TrainConfig(trainer=TrainerConfig(epochs=3, batch_size=4))
    assert count_work(whole, SHAPE, [10] * 10, 0, is_recomputed=False).steps == 9
    part = TrainConfig(trainer=TrainerConfig(epochs=0.25, batch_size=1))
    assert count_work(part, SHAPE, [10] * 10, 0, is_recomputed=False).steps == 3  # as the Trainer: it rounds up
    limited = TrainConfig(trainer=TrainerConfig(epochs=3, batch_size=4, max_steps=2))
    assert count_work(limited, SHAPE, [10] * 10, 0, is_recomputed=False).tokens == 80


def test_a_pair_is_one_row_and_its_answers_are_read_by_the_bare_base_too() -> None:
    trainer = TrainerConfig(epochs=1, batch_size=4)
    pairs = TrainConfig(lora=LoraConfig(rank=1), trainer=trainer, method=MethodConfig(MethodKind.dpo, 0.1))
    chats = TrainConfig(lora=LoraConfig(rank=1), trainer=trainer)
    found, same = (count_work(config, SHAPE, [10] * 20, 120, is_recomputed=False) for config in (pairs, chats))
    assert (found.steps, same.steps) == (3, 5)
    assert found.tokens == same.tokens == 200
    forward = 2 * 200 * SHAPE.linear_parameters + 4 * 64 * 2 * 20 * 100 + 2 * 120 * 64 * 1000
    assert found.operations - same.operations == forward


def test_the_probe_measures_a_rate() -> None:
    assert 1e7 < probe_rate(SHAPE, MACHINE) < 1e15


def test_a_run_is_estimated_before_its_model_loads() -> None:
    row: Example = {"input_ids": [1] * 20, "labels": [1] * 20}
    learned = Encoded([row] * 8, tokens=160, trained_tokens=160, longest=20)
    config = TrainConfig(trainer=TrainerConfig(batch_size=4), hardware=HardwareConfig(micro_batch=2))
    plan, lines = estimate_run(config, SHAPE, learned, MACHINE)
    assert plan.total < 8 * GIB
    assert [line.partition(":")[0] for line in lines] == ["hardware", "memory", "time"]
    assert "6 steps and 480 tokens" in lines[2]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "0 to 1 s"),
        (50, 110, "50 to 110 s"),
        (100, 150, "1.7 to 2.5 min"),
        (720, 1080, "12 to 18 min"),
        (7200, 36000, "2 to 10 h"),
        (5 * 86400, 7 * 86400, "5.0 to 7.0 d"),
    ],
)
def test_spans_are_said_in_the_unit_that_fits(low: float, high: float, expected: str) -> None:
    assert describe_range(low, high) == expected
