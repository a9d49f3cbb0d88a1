"""What a run will take, for programs: `python train/run.py check_only=true output=json` prints it as one JSON object.

The figures are those that people are shown (memory.py, duration.py). A run that does not fit is told as such, with what
would make it fit, and is not refused. Does not know what is printed.
"""

from typing import Any

from train.config import TrainConfig
from train.duration import estimate_duration
from train.encoding import Encoded, measure_lengths
from train.footprint import Demand, Shape
from train.hardware import Machine
from train.memory import choose_plan, find_remedies


def estimate_needs(config: TrainConfig, shape: Shape, learned: Encoded, machine: Machine) -> dict[str, Any]:
    """Estimate memory and time of a run before its model loads.

    Args:
        config: Of the run.
        shape: Of the base model.
        learned: The training rows.
        machine: Where it runs.

    Returns:
        `hardware`, `device`, `rows`, `steps`, `tokens` (read over all epochs), `seconds` (`low`, `high`, without
        evaluations), `memory` (`needed_bytes`, `free_bytes`, `parts` in bytes), `fits`, and `remedies` (`change` as it
        is typed, `needed_bytes` then), which are none where it fits.
    """
    demand = Demand.of_config(config, learned.longest, machine.dtype.itemsize, machine.device.type)
    free = machine.memory_bytes
    plan = choose_plan(shape, demand, free)
    lengths = measure_lengths(learned).tolist()
    duration = estimate_duration(config, shape, lengths, learned.trained_tokens, plan, machine)
    fits = plan.total <= free
    remedies = [] if fits else find_remedies(shape, demand, free)
    parts = {name: getattr(plan, name) for name in ("base", "adapter", "activations", "logits", "libraries")}
    return {
        "hardware": machine.name,
        "device": machine.device.type,
        "rows": len(lengths) // demand.answers,
        "steps": duration.work.steps,
        "tokens": duration.work.tokens,
        "seconds": {"low": round(duration.low_s, 1), "high": round(duration.high_s, 1)},
        "memory": {"needed_bytes": plan.total, "free_bytes": free, "parts": parts},
        "fits": fits,
        "remedies": [{"change": change, "needed_bytes": size} for change, size in remedies],
    }
