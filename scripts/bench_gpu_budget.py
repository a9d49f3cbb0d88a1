"""The budget of one card of 24 GB that the memory steps of scripts/bench_gpu.py hold everybody to.

Serving Llama-3.2-3B with eight adapters, an embedder, a reranker, an index and a 4-bit training job, divided by
serve/card_budget.py; and torch's limit, by which a process on a larger card has no more than its line. Starts nothing.
"""

import torch

from scripts.bench_gpu_models import LLAMA_3B, RANK, make_shape
from serve.card_budget import CONTEXT_BYTES, GIB, CardBudget, ModelSize, plan_card
from serve.engine_command import EngineConfig
from train.config import Choice, QuantKind
from train.footprint import Demand, Shape
from train.memory import choose_plan

CARD_BYTES = 24 * GIB
ENCODER_BYTES = int(1.0 * GIB)
ENCODERS = {"embedder": ENCODER_BYTES, "reranker": ENCODER_BYTES}
INDEXED_VECTORS, INDEXED_DIMENSION = 500_000, 384
TRAINED_LENGTH = 2048
ADAPTERS = 8
CONTEXT, TRAINER = "the gateway's context", "a training job"
"""Two lines of the budget, as serve/card_budget.py calls them."""


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


def make_shared_engine() -> EngineConfig:
    """Return the settings of a vLLM that shares a card, but for its share."""
    return EngineConfig(
        device="cuda",
        dtype="bfloat16",
        max_model_len=8192,
        max_num_seqs=64,
        max_loras=ADAPTERS,
        max_lora_rank=RANK,
        start_timeout_s=180.0,
    )


def draw_budget(card: int = CARD_BYTES) -> CardBudget:
    """Divide a card between all users at once.

    Args:
        card: Its bytes.

    Raises:
        ConfigError: The model does not fit beside the others.
    """
    shape = make_shape(LLAMA_3B)
    trainer = choose_plan(shape, make_demand(TRAINED_LENGTH), CARD_BYTES).total + CONTEXT_BYTES
    index = INDEXED_VECTORS * INDEXED_DIMENSION * 4
    return plan_card(card, size_model(shape), make_shared_engine(), ENCODERS, index, trainer)


def limit_memory(device: torch.device, limit: int) -> None:
    """Let torch have no more than some bytes of a card in this process; on a CPU nothing is limited."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))


def read_peak(device: torch.device) -> int:
    """Return the most bytes of tensors that there were at once in this process; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
