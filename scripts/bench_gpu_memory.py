"""Memory in scripts/bench_gpu.py: the shares of one card, and whether each user stays within its own.

The budget of serve/card_budget.py is drawn up for a card of 24 GB with serving, retrieval and a 4-bit training job on
it; then the trainer and the encoders run in processes that torch lets have no more than their share, as on that
smaller card, and at last everybody at once (bench_gpu_one_card.py). In the small the same processes run on the CPU,
without the limit.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError
from scripts.bench_gpu_budget import (
    CARD_BYTES,
    ENCODER_BYTES,
    TRAINED_LENGTH,
    draw_budget,
    limit_memory,
    make_demand,
    read_peak,
)
from scripts.bench_gpu_models import LLAMA_3B, SMALL, make_shape
from scripts.bench_gpu_one_card import SHARED_STEP
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, describe_missing, is_ours
from serve.card_budget import GIB
from train.memory import choose_plan

logger = logging.getLogger(__name__)


def measure_budget(setting: Setting) -> list[Figure]:
    """Divide a card of 24 GB between all users at once."""
    budget = draw_budget()
    logger.info("%s", budget.describe())
    (setting.folder / "card_budget.txt").write_text(f"{budget.describe()}\n", encoding="utf-8")
    figures = [Figure(f"share of {name}", size / GIB, "GiB") for name, size in budget.shares.items()]
    figures.append(Figure("share of vLLM", budget.engine / GIB, "GiB"))
    figures.append(Figure("tokens of vLLM's cache", float(budget.cache_tokens), "tokens", "one answer of 8,192"))
    fits = [size for size in range(1, 25) if _fits(size * GIB)]
    if fits != list(range(fits[0], 25)) or fits[0] == 1:
        raise Wrong(f"cards of {fits} GiB would do, found no size from which on all do and below which none does")
    return [*figures, Figure("smallest card that is not refused", float(fits[0]), "GiB")]


def _fits(card: int) -> bool:
    """Whether a card is divided, and not refused with the sums."""
    try:
        draw_budget(card)
    except ConfigError:
        return False
    return True


def measure_trainer(setting: Setting) -> list[Figure]:
    """Train in 4 bits within what the estimate says."""
    shape = make_shape(setting.pick(LLAMA_3B, SMALL))
    plan = choose_plan(shape, make_demand(setting.pick(TRAINED_LENGTH, 96)), CARD_BYTES)
    found = run_limited(setting, "train", plan.total)
    return [
        Figure("estimate", plan.total / 1e9, "GB"),
        Figure("4-bit training", found["tokens_per_s"], "tokens/s"),
        *([Figure("most memory of tensors", found["peak"] / 1e9, "GB", "at most 4.0")] if found["peak"] else []),
    ]


def measure_encoders(setting: Setting) -> list[Figure]:
    """Embed and rerank within their share."""
    found = run_limited(setting, "encode", ENCODER_BYTES)
    return [
        Figure("pairs within the share", found["pairs_per_s"], "pairs/s"),
        *([Figure("most memory of tensors", found["peak"] / 1e9, "GB", "at most 1.07")] if found["peak"] else []),
    ]


def run_limited(setting: Setting, job: str, limit: int) -> dict[str, Any]:
    """Run a job in a process of its own under a limit.

    Raises:
        Wrong: It ran out of memory, or failed otherwise.
        Unavailable: The card is smaller than the limit, or the job lacks a package.
    """
    if setting.device.type == "cuda" and torch.cuda.get_device_properties(setting.device).total_memory < limit:
        raise Unavailable(f"the card has less than the share of {limit / GIB:.1f} GiB")
    told = {"job": job, "limit": limit, "device": setting.device.type, "is_small": setting.is_small}
    told |= {"data": str(setting.data.root), "folder": str(setting.folder)}
    command = [sys.executable, "-m", "scripts.bench_gpu_memory", json.dumps(told)]
    root = Path(__file__).resolve().parent.parent
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=240)
    if answer.returncode:
        raise Wrong((answer.stderr.strip().splitlines() or ["?"])[-1][:300])
    found = dict(json.loads(answer.stdout.strip().splitlines()[-1]))
    if missing := found.get("missing"):
        raise Unavailable(missing)
    return found


def run_job(told: dict[str, Any]) -> dict[str, Any]:
    """Do a job in this process, within its limit on a card, and return its figures."""
    from core.layout import DataDir
    from scripts import bench_gpu_retrieval, bench_gpu_train

    device = torch.device(told["device"])
    setting = Setting(device, told["is_small"], DataDir(Path(told["data"])), Path(told["folder"]))
    limit_memory(device, told["limit"])
    if told["job"] == "train":
        figures = bench_gpu_train.time_small_memory(setting)
        found = {"tokens_per_s": figures[0].value}
    else:
        batch = setting.pick(bench_gpu_retrieval.RERANKED_AT_ONCE, 8)
        figures = bench_gpu_retrieval.measure_encoders(setting, (batch,))
        found = {"pairs_per_s": next(f.value for f in figures if f.unit == "pairs/s")}
    return {**found, "peak": read_peak(device)}


STEPS = (
    Step("budget of 24 GB", measure_budget),
    Step("trainer within its share", measure_trainer, needs=("bitsandbytes",)),
    Step("encoders within their share", measure_encoders),
    SHARED_STEP,
)


def answer(told: dict[str, Any]) -> dict[str, Any]:
    """Return a job's figures, or which package it lacks."""
    try:
        return run_job(told)
    except ImportError as error:
        if is_ours(error):
            raise
        return {"missing": describe_missing(error)}


if __name__ == "__main__" and len(sys.argv) > 1:
    print(json.dumps(answer(json.loads(sys.argv[1]))))
