"""The configuration and the data reach TRL as meant."""

from pathlib import Path
from typing import Any

import pytest
import torch

from train.config import HardwareConfig, TrainConfig, TrainerConfig
from train.encoding import Encoded
from train.hardware import Machine
from train.memory import MemoryPlan
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
