"""How long a run will take, estimated before the model loads, in arithmetic operations over a measured rate.

A frozen base needs its products twice, forward and for the gradient of their inputs, so 4 operations a weight and
token and not 6; the adapter's weights need 6. The rate is that of matrix products as large as the model's, measured on
this machine in less than a second. What lies between it and a real step (norms, softmax, memory) is a range that was
measured on one CPU (docs/experiments.md) and is an assumption on cards.
"""

import math
import time
from dataclasses import dataclass

import torch

from train.config import TrainConfig
from train.encoding import Encoded, measure_lengths
from train.footprint import Shape
from train.hardware import Machine
from train.memory import MemoryPlan, plan_run

EFFICIENCY = {"cpu": (0.45, 0.95), "cuda": (0.3, 0.6)}
"""Share of the products' rate that a whole step reaches, at worst and at best."""
PROBE_SECONDS = 0.4
PROBE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes.

    Attributes:
        steps: Optimizer steps.
        tokens: That are read, over all epochs and processes, without padding.
        operations: Of all that, in all processes together.
    """

    steps: int
    tokens: int
    operations: float


@dataclass(frozen=True, slots=True)
class Duration:
    """How long it takes.

    Attributes:
        work: What is to be done.
        low_s: With luck.
        high_s: Without.
        rate: Operations a second of a matrix product in one process.
    """

    work: Work
    low_s: float
    high_s: float
    rate: float

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"time: about {describe_range(self.low_s, self.high_s)} for {self.work.steps:,} steps and "
            f"{self.work.tokens:,} tokens ({self.work.operations / 1e12:,.1f} Tflop; matrix products run at "
            f"{self.rate / 1e9:,.0f} Gflop/s), without evaluations"
        )


def estimate_run(config: TrainConfig, shape: Shape, learned: Encoded, machine: Machine) -> tuple[MemoryPlan, list[str]]:
    """Estimate memory and time of a run before its model loads.

    Args:
        config: Of the run.
        shape: Of the base model.
        learned: The training rows.
        machine: Where it runs.

    Returns:
        The plan, and the lines for people.

    Raises:
        ConfigError: It does not fit; names the changes that would make it fit.
    """
    plan = plan_run(config, shape, learned.longest, machine.dtype.itemsize, machine.device.type, machine.memory_bytes)
    duration = estimate_duration(
        config, shape, measure_lengths(learned).tolist(), learned.trained_tokens, plan, machine
    )
    return plan, [machine.describe(), plan.describe(machine.memory_bytes), duration.describe()]


def estimate_duration(
    config: TrainConfig, shape: Shape, lengths: list[int], trained_tokens: int, plan: MemoryPlan, machine: Machine
) -> Duration:
    """Estimate a run's time from its data, the model's shape and a probe of this machine.

    Args:
        config: Of the run.
        shape: Of the base model.
        lengths: Tokens of each training row; of pairs, of each answer with its prompt.
        trained_tokens: Of them, those that are learned.
        plan: Whether activations are recomputed.
        machine: Where it runs.
    """
    work = count_work(config, shape, lengths, trained_tokens, is_recomputed=plan.gradient_checkpointing)
    rate = probe_rate(shape, machine)
    seconds = work.operations / (rate * config.hardware.world)
    worst, best = EFFICIENCY[machine.device.type]
    return Duration(work, seconds / best, seconds / worst, rate)


def count_work(
    config: TrainConfig, shape: Shape, lengths: list[int], trained_tokens: int, *, is_recomputed: bool
) -> Work:
    """Count the operations of a whole run."""
    is_dpo, batch = config.method.is_dpo, config.trainer.batch_size
    rows = len(lengths) // (2 if is_dpo else 1)  # a pair has two answers, and the bare base reads both once more
    steps = max(1, math.ceil(config.trainer.epochs * -(-rows // batch)))  # as the Trainer counts them
    if config.trainer.max_steps is not None:
        steps = min(steps, config.trainer.max_steps)
    epochs = min(config.trainer.epochs, steps * batch / rows)
    tokens = sum(lengths)
    base = shape.linear_parameters * 2 * ((3 if is_recomputed else 2) + is_dpo)
    adapter = shape.adapter_parameters(config.lora.rank, config.lora.targets) * (8 if is_recomputed else 6)
    # Each token attends to all before it: two products of the heads' width, forward once and backward twice.
    attention = 4 * shape.queries * shape.layers * ((4 if is_recomputed else 3) + is_dpo)
    epoch = tokens * (base + adapter) + attention * sum(length * length for length in lengths)
    head = (6 if is_dpo else 4) * shape.vocabulary * shape.hidden * trained_tokens
    return Work(steps, round(tokens * epochs), (epoch + head) * epochs)


def probe_rate(shape: Shape, machine: Machine) -> float:
    """Return the operations a second of a matrix product of the model's own size, measured here and now.

    Of values drawn at random: a card that multiplies equal ones draws less power and clocks higher.
    """
    chance = torch.Generator(machine.device).manual_seed(0)
    sizes = ((PROBE_TOKENS, shape.hidden), (shape.hidden, shape.intermediate))
    left, right = (torch.randn(*size, dtype=machine.dtype, device=machine.device, generator=chance) for size in sizes)
    operations = 2.0 * left.numel() * shape.intermediate
    best = float("inf")
    ends = time.perf_counter() + PROBE_SECONDS
    torch.matmul(left, right)  # the first one makes workspaces
    while time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(4):
            torch.matmul(left, right)
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
        best = min(best, (time.perf_counter() - began) / 4)
    return operations / best


def describe_range(low_s: float, high_s: float) -> str:
    """Return a span of time in the unit that fits its upper end, such as «12 to 18 min»."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if high_s >= 2 * size:
            low, high = low_s / size, high_s / size
            form = ".0f" if high >= 10 else ".1f"
            return f"{low:{form}} to {high:{form}} {unit}"
    return f"{low_s:.0f} to {max(high_s, 1):.0f} s"
