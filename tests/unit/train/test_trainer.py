"""The configuration and the data reach TRL as meant."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.small_run import make_model, run_small
from train.config import HardwareConfig, TrainConfig, TrainerConfig
from train.encoding import Encoded
from train.hardware import Machine
from train.memory import MemoryPlan
from train.tokens import IGNORED
from train.trainer import build_arguments, to_dataset

PLAN = MemoryPlan(0, 0, 0, 0, keep_dequantized=True, gradient_checkpointing=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_configuration_reaches_trl(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer = TrainerConfig(batch_size=8, max_steps=5, eval_every=2, save_every=3, options={"adam_beta2": 0.95})
    config = TrainConfig(trainer=trainer, hardware=HardwareConfig(micro_batch=2))
    machine = Machine(torch.device("cpu"), "cpu", dtype, 0, 2)
    arguments = build_arguments(config, machine, PLAN, tmp_path, has_valid=True)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 4)
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (5, 2, 3)
    assert (arguments.bf16, arguments.use_cpu, arguments.gradient_checkpointing) == (
        dtype is torch.bfloat16,
        True,
        False,
    )
    assert arguments.adam_beta2 == 0.95
    assert not arguments.push_to_hub


def test_examples_keep_their_order() -> None:
    examples: Any = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    dataset = to_dataset(Encoded(examples=examples))
    assert dataset[0]["labels"] == [-100, 2, 3]


def ragged_rows(count: int, learned_from: int = 3) -> Encoded:
    """Return rows of 6 to 30 tokens, of which very different shares are learned."""
    examples: Any = []
    for row in range(count):
        ids = [(7 * row + 3 * place) % 250 for place in range(6 + 8 * (row % 4))]
        labels = [token if place >= learned_from + 5 * (row % 4) else IGNORED for place, token in enumerate(ids)]
        examples.append({"input_ids": ids, "labels": labels})
    return Encoded(examples=examples)


def test_a_step_is_the_same_however_its_rows_are_split(tmp_path: Path) -> None:
    runs = [
        run_small(
            tmp_path / str(rows), ragged_rows(8), None, TrainerConfig(batch_size=8, micro_batch=rows, max_steps=3)
        )
        for rows in (1, 4)
    ]
    ones, fours = (run.read("step") for run in runs)
    for one, four in zip(ones, fours, strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(four["grad_norm"], rel=1e-4)


def test_the_loss_is_a_mean_over_learned_tokens(tmp_path: Path) -> None:
    learned = ragged_rows(8)
    run = run_small(tmp_path, learned, None, TrainerConfig(batch_size=8, micro_batch=2, max_steps=1))
    losses = []
    model = make_model()
    for example in learned.examples:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        wanted = torch.tensor(example["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none")[wanted != IGNORED])
    assert run.read("step")[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
