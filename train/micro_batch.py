"""`trainer.micro_batch=auto`: how many rows a process takes at once, found by trying on the run's own model and data.

On a card the largest number that runs on the longest rows; on a CPU, where memory is plenty and larger is not faster,
the one that reads most tokens a second. The batch behind an optimizer step stays what it was asked to be. What was
found is written into the run's config.yaml, so that a resumed run takes the same. Does not know the loop.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.events import EventWriter
from train.config import TrainConfig
from train.encoding import Encoded, measure_lengths
from train.footprint import Demand, Shape
from train.hardware import Machine
from train.memory import MemoryPlan, fix_choices, plan_fixed
from train.tokens import Example

logger = logging.getLogger(__name__)

TRIAL_SECONDS = 45.0
"""On a CPU no larger number is tried once this much has gone."""
CARD_SLACK = 1.5
"""A card tries numbers up to this multiple of what the estimate lets in."""


def list_candidates(config: TrainConfig, shape: Shape, plan: MemoryPlan, longest: int, machine: Machine) -> list[int]:
    """Return the numbers of rows worth trying, ascending: divisors of a process's share that the estimate lets in.

    Args:
        config: Of the run.
        shape: Of the base model.
        plan: For one row; what it chose stays.
        longest: Tokens of the longest row.
        machine: Where it runs.
    """
    share = max(1, config.trainer.batch_size // config.hardware.world)
    demand = fix_choices(Demand.of_config(config, longest, machine.dtype.itemsize, machine.device.type), plan)
    room = machine.memory_bytes * (CARD_SLACK if machine.device.type == "cuda" else 0.92)
    divisors = [rows for rows in range(1, share + 1) if share % rows == 0]
    return [rows for rows in divisors if rows == 1 or plan_fixed(shape, demand, rows).total <= room]


def find_rows(trainer: Any, learned: Encoded, candidates: list[int]) -> int:
    """Try and return the number of rows; every process of a run returns the same.

    Args:
        trainer: TRL's trainer, before it trains.
        learned: The training rows.
        candidates: From `list_candidates`.

    Raises:
        ConfigError: Not even one row fits.
    """
    lengths = measure_lengths(learned).tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    is_card = trainer.args.device.type == "cuda"
    middle, most = len(order) // 2, candidates[-1]
    picked = order[-most:] if is_card else order[max(0, middle - most) : middle + most]
    ordered = [learned.examples[row] for row in picked]
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    with torch.random.fork_rng(devices=[trainer.args.device] if is_card else []):
        found = find_largest(trainer, ordered, candidates) if is_card else find_fastest(trainer, ordered, candidates)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        least = torch.tensor(found, device=trainer.args.device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        found = int(least.item())
    return found


def find_largest(trainer: Any, ordered: list[Example], candidates: list[int]) -> int:
    """Return the largest number that runs on the longest rows, from the top down.

    What the optimizer takes at its first step is held meanwhile: a number that fits without it would not run.
    """
    held = take_optimizer_memory(trainer.model)
    for rows in reversed(candidates):
        try:
            run_trial(trainer, (ordered * rows)[-rows:] if rows > len(ordered) else ordered[-rows:])
        except torch.OutOfMemoryError:
            logger.info("micro-batch of %d: too large for the card", rows)
        else:
            logger.debug("micro-batch of %d: runs beside %d values for the optimizer", rows, sum(map(len, held)))
            return rows
        finally:
            trainer.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    raise ConfigError(
        f"trainer.micro_batch: not even one row of {len(ordered[-1]['input_ids'])} tokens fits on the card. What would "
        "help: a smaller trainer.max_length, hardware.gradient_checkpointing=always, quant.keep_dequantized=never.",
        param="trainer.micro_batch",
    )


def take_optimizer_memory(model: nn.Module) -> list[Tensor]:
    """Return as much memory as AdamW's two moments of every trained value will take, on its device."""
    return [torch.empty(2 * one.numel(), device=one.device) for one in model.parameters() if one.requires_grad]


def find_fastest(trainer: Any, ordered: list[Example], candidates: list[int]) -> int:
    """Return the number that reads most tokens a second on rows of middling length; of equals the larger."""
    best, best_rate = candidates[0], 0.0
    began = time.perf_counter()
    middle = len(ordered) // 2
    run_trial(trainer, ordered[middle : middle + 1])  # the first one makes workspaces
    for rows in candidates:
        start = max(0, min(middle - rows // 2, len(ordered) - rows))
        batch = ordered[start : start + rows]
        batch += batch[:1] * (rows - len(batch))
        tokens = sum(len(example["input_ids"]) for example in batch)
        seconds = min(run_trial(trainer, batch) for _ in range(2))
        logger.info("micro-batch of %d: %.0f tokens/s", rows, tokens / seconds)
        if tokens / seconds > best_rate * 0.98:
            best, best_rate = rows, max(best_rate, tokens / seconds)
        if time.perf_counter() - began > TRIAL_SECONDS or tokens / seconds < 0.8 * best_rate:
            break
    return best


def run_trial(trainer: Any, examples: list[Example]) -> float:
    """Go forward and backward once, change nothing, and return the seconds it took."""
    device = trainer.args.device
    made = trainer.data_collator(examples).items()
    batch = {name: value.to(device) if hasattr(value, "to") else value for name, value in made}
    trainer.model.train()
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16):
        loss = trainer.model(**batch, use_cache=False, fused_lm_head=True).loss
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    trainer.model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def apply_rows(trainer: Any, config: TrainConfig, rows: int) -> None:
    """Make a trainer, and the configuration that it came from, take so many rows at once, the same batch in all.

    Args:
        trainer: TRL's trainer, before it trains.
        config: Of the run; changed.
        rows: At once in one process; divides its share of a batch.
    """
    config.trainer.micro_batch = rows
    arguments = trainer.args
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = rows
    arguments.gradient_accumulation_steps = config.trainer.batch_size // config.hardware.world // rows
    vars(trainer)["_train_batch_size"] = arguments.train_batch_size


def record_rows(events: EventWriter, folder: Path, config: TrainConfig) -> None:
    """Write what was found where a resumed run and a reader find it.

    Args:
        events: The run's events.
        folder: runs/<run_id>.
        config: With what was found.
    """
    import yaml

    from core.layout import write_file
    from train.checks import to_plain
    from train.launch import is_main

    events.write("log", message=f"micro-batch of {config.trainer.micro_batch} rows, found by trying")
    if is_main():
        write_file(folder / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))
