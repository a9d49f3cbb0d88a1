"""What a run will need in memory, estimated from the model's config before anything loads, beside what the machine has.

A first estimate: weights, adapter with its optimizer state, activations, logits. It errs on the large side by some ten
per cent and knows nothing of fragmentation. Plain Python on numbers; hardware.py says what the machine has.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, ContractError
from train.config import Choice, QuantConfig, QuantKind, TrainConfig, micro_batch_of

GIB = 2**30
NF4_BYTES = 0.516
"""A 4-bit code and its share of the double-quantized constants, a weight."""
ADAPTER_BYTES = 16
"""float32 value, gradient and two AdamW moments, a trained parameter."""
LAYER_ACTIVATIONS = 34
"""Values of the hidden size that a layer keeps for its backward pass, an MLP three times as wide assumed (counted on
Llama: norms, q, k, v, attention, gate, up, their product, and the adapters' inputs)."""
RUNTIME_BYTES = int(0.9 * GIB)
"""Libraries and, on a card, the CUDA context."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's config.json decides its size."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    has_tied_head: bool

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers that are quantized and adapted."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.has_tied_head else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Weights of an adapter on every linear layer."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        widths = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * widths


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by part, and the two choices that follow from them."""

    base: int
    adapter: int
    activations: int
    logits: int
    keep_dequantized: bool
    gradient_checkpointing: bool

    @property
    def total(self) -> int:
        """Everything together."""
        return self.base + self.adapter + self.activations + self.logits + RUNTIME_BYTES

    def describe(self, available: int) -> str:
        """Return one line for people."""
        parts = ", ".join(
            f"{name} {size / GIB:.2f}"
            for name, size in [
                ("base", self.base),
                ("adapter and optimizer", self.adapter),
                ("activations", self.activations),
                ("logits", self.logits),
                ("libraries", RUNTIME_BYTES),
            ]
        )
        return f"memory: about {self.total / GIB:.1f} GiB of {available / GIB:.1f} GiB free ({parts} GiB)"


def read_shape(model_folder: Path) -> Shape:
    """Read a model's shape from its config.json.

    Raises:
        ContractError: The config lacks what a Llama-like model has.
    """
    try:
        config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        return Shape(
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            has_tied_head=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{model_folder / 'config.json'}: wanted a decoder's config, found {error!r} missing or wrong. Import it."
        ) from error


def plan_run(config: TrainConfig, model_folder: Path, longest: int, value_bytes: int, available: int) -> MemoryPlan:
    """Estimate a run from its configuration.

    Args:
        config: Of the run.
        model_folder: Of the base model; its config.json is read.
        longest: Tokens of the longest row.
        value_bytes: Bytes of a value in the compute dtype.
        available: Free bytes of the device.
    """
    return plan_memory(
        read_shape(model_folder),
        config.quant,
        rank=config.lora.rank,
        rows=micro_batch_of(config),
        length=min(longest, config.trainer.max_length),
        value_bytes=value_bytes,
        checkpointing=config.hardware.gradient_checkpointing,
        available=available,
    )


def plan_memory(
    shape: Shape,
    quant: QuantConfig,
    *,
    rank: int,
    rows: int,
    length: int,
    value_bytes: int,
    checkpointing: Choice,
    available: int,
) -> MemoryPlan:
    """Estimate what a run needs and choose what memory decides.

    Args:
        shape: Of the base model.
        quant: How the base is held.
        rank: Of the adapter.
        rows: Rows at once.
        length: Tokens of the longest row that will come.
        value_bytes: Bytes of a value in the compute dtype: 2 or 4.
        checkpointing: As configured.
        available: Free bytes of the device.

    Returns:
        The plan. `auto` choices are taken where they fit: first without recomputation, then the dequantized weights.

    Raises:
        ConfigError: It plainly cannot fit; says what would help.
    """
    is_nf4 = quant.kind is QuantKind.nf4
    plain = shape.embedding_parameters * value_bytes
    small = plain + int(shape.linear_parameters * (NF4_BYTES if is_nf4 else value_bytes))
    large = plain + shape.linear_parameters * value_bytes
    adapter = shape.adapter_parameters(rank) * ADAPTER_BYTES
    tokens = rows * length
    layer = tokens * shape.hidden * LAYER_ACTIVATIONS * value_bytes
    kept, recomputed = shape.layers * layer, layer + shape.layers * tokens * shape.hidden * value_bytes
    logits = 3 * min(tokens * shape.vocabulary, 2**25) * 4

    def fits(base: int, activations: int) -> bool:
        return base + adapter + activations + logits + RUNTIME_BYTES <= 0.92 * available

    recompute = checkpointing is Choice.always or (checkpointing is Choice.auto and not fits(small, kept))
    activations = recomputed if recompute else kept
    keep = is_nf4 and (
        quant.keep_dequantized is Choice.always or (quant.keep_dequantized is Choice.auto and fits(large, activations))
    )
    plan = MemoryPlan(large if keep else small, adapter, activations, logits, keep, recompute)
    if plan.total > available:
        raise ConfigError(
            f"{plan.describe(available)}: this cannot fit. What would help: trainer.micro_batch=1 (now {rows}), "
            f"trainer.max_length below {length}, hardware.gradient_checkpointing=always, quant=nf4 with "
            "quant.keep_dequantized=never, or a smaller model.",
            param="hardware",
        )
    return plan
