"""Memory in scripts/bench_gpu.py: the shares of one card, and whether each user stays within its own.

The budget of serve/card_budget.py is drawn up for a card of 24 GB with serving, retrieval and a 4-bit training job on
it; then the trainer and the encoders run in processes that torch lets have no more than their share, as on that
smaller card. In the small the same processes run on the CPU, without the limit.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError
from scripts.bench_gpu_models import LLAMA_3B, RANK, SMALL, make_shape
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, describe_missing, is_ours
from serve.card_budget import CONTEXT_BYTES, GIB, ModelSize, plan_card
from serve.engine_command import EngineConfig
from train.config import Choice, QuantKind
from train.footprint import Demand, Shape
from train.memory import choose_plan

logger = logging.getLogger(__name__)

CARD_BYTES = 24 * GIB
ENCODER_BYTES = int(1.0 * GIB)
INDEX_BYTES = 500_000 * 384 * 4
TRAINED_LENGTH = 2048


def make_demand(length: int) -> Demand:
    """Return what a 4-bit run of one pack at once asks for, with what saves memory."""
    return Demand(
        QuantKind.nf4,
        rank=RANK,
        rows=1,
        length=length,
        value_bytes=2,
        keep_dequantized=Choice.never,
        checkpointing=Choice.always,
        has_fused_head=True,
        may_run_by_hand=True,
    )


def size_model(shape: Shape) -> ModelSize:
    """Return a shape's size as a folder of 16-bit weights would tell it."""
    weights = 2 * (shape.linear_parameters + shape.embedding_parameters)
    return ModelSize(weights, 4 * shape.layers * shape.keys, 2 * shape.adapter_parameters(1))


def measure_budget(setting: Setting) -> list[Figure]:
    """Divide a card of 24 GB between all users at once."""
    shape = make_shape(LLAMA_3B)
    trainer = choose_plan(shape, make_demand(TRAINED_LENGTH), CARD_BYTES).total + CONTEXT_BYTES
    engine = EngineConfig(device="cuda", max_model_len=8192, max_num_seqs=64, max_loras=8, max_lora_rank=RANK)
    encoders = {"embedder": ENCODER_BYTES, "reranker": ENCODER_BYTES}
    budget = plan_card(CARD_BYTES, size_model(shape), engine, encoders, INDEX_BYTES, trainer)
    logger.info("%s", budget.describe())
    (setting.folder / "card_budget.txt").write_text(f"{budget.describe()}\n", encoding="utf-8")
    figures = [Figure(f"share of {name}", size / GIB, "GiB") for name, size in budget.shares.items()]
    figures.append(Figure("share of vLLM", budget.engine / GIB, "GiB"))
    figures.append(Figure("tokens of vLLM's cache", float(budget.cache_tokens), "tokens", "one answer of 8,192"))
    fits = [size for size in range(1, 25) if _fits(size * GIB, size_model(shape), engine, encoders, trainer)]
    if fits != list(range(fits[0], 25)) or fits[0] == 1:
        raise Wrong(f"cards of {fits} GiB would do, found no size from which on all do and below which none does")
    return [*figures, Figure("smallest card that is not refused", float(fits[0]), "GiB")]


def _fits(card: int, model: ModelSize, engine: EngineConfig, encoders: dict[str, int], trainer: int) -> bool:
    """Whether a card is divided, and not refused with the sums."""
    try:
        plan_card(card, model, engine, encoders, INDEX_BYTES, trainer)
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
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, told["limit"] / total))
    if told["job"] == "train":
        figures = bench_gpu_train.time_small_memory(setting)
        found = {"tokens_per_s": figures[0].value}
    else:
        batch = setting.pick(bench_gpu_retrieval.RERANKED_AT_ONCE, 8)
        figures = bench_gpu_retrieval.measure_encoders(setting, (batch,))
        found = {"pairs_per_s": next(f.value for f in figures if f.unit == "pairs/s")}
    return {**found, "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0}


STEPS = (
    Step("budget of 24 GB", measure_budget),
    Step("trainer within its share", measure_trainer, needs=("bitsandbytes",)),
    Step("encoders within their share", measure_encoders),
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
