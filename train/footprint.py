"""What a run needs in memory, counted tensor by tensor from the model's config: weights, adapter, activations, logits.

What each layer keeps for its backward pass, the adapter with its optimizer state, and what libraries and the heap take
beside. How far that is from what a process really takes is measured by scripts/measure_memory.py (docs/experiments.md).
Plain Python on numbers; knows nothing of fragmentation, and chooses nothing.
"""

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from core.errors import ContractError
from train.config import Choice, QuantKind, Strategy, TrainConfig, micro_batch_of

GIB = 2**30
NF4_BYTES = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
"""Bytes of a weight in NF4, with and without double quantization: a 4-bit code, and its share of the constants."""
ADAPTER_BYTES = 16
"""float32 value, gradient and two AdamW moments, a trained parameter."""
CHUNK_LOGITS = 2**24
"""Logits that TRL's head computes at once on a card, roughly."""
FUSED_CHUNK_LOGITS = 2**23
"""The same of our own head on a CPU, as in train/head.py."""
CARD_CHUNK_LOGITS = {False: 2**26, True: 2**24}
"""The same of our own head on a card, without and with recomputation."""
ATTENTION_BLOCK = 128
KEPT_WEIGHTS = 2**20
"""Queries at once, and attention weights of a layer that wait for its backward pass, as in train/attention.py."""
RUNTIME_BYTES = {"card": int(0.4 * GIB), "cpu": int(0.45 * GIB), "by hand": int(0.1 * GIB)}
"""What libraries take beside the tensors once the free memory was read: workspaces, imports, the loader."""
HEAP_SCRAPS = 0.5
"""Freed pieces that a CPU process's heap keeps in float32, as a share of what the layers keep without recomputing."""
HEAP_SCRAPS_BY_HAND = 0.15
"""The same for the layers by hand."""


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
    is_llama: bool = True

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.key_value_heads * self.head_size

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers that are quantized and adapted."""
        return self.layers * sum(prod(size) for size in self.linear_sizes().values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.has_tied_head else 2)

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Return inputs and outputs of each linear layer of a block, by its name."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def adapter_parameters(self, rank: int, targets: list[str] | None = None) -> int:
        """Weights of an adapter on the named linear layers; None or `all-linear` is every one of them."""
        every = not targets or targets == ["all-linear"]
        widths = sum(sum(size) for name, size in self.linear_sizes().items() if every or name in (targets or []))
        return self.layers * rank * widths


@dataclass(frozen=True, slots=True)
class Demand:
    """What of a run's configuration decides its memory.

    Attributes:
        quant: How the base is held.
        double: Whether the constants of NF4 are quantized too.
        keep_dequantized: As configured.
        rank: Of the adapter.
        targets: Of the adapter.
        rows: At once in one process.
        answers: Sequences a row: a preference pair has two.
        length: Tokens of the longest row that will come.
        value_bytes: Of a value in the compute dtype, 2 or 4.
        checkpointing: As configured.
        is_eager: Whether attention keeps its weights, length by length.
        is_cpu: Whether it is counted for a CPU.
        has_fused_head: Whether the head is ours (train/head.py).
        may_run_by_hand: Whether the layers by hand take a Llama (train/decoder.py); on a CPU, whose weights are plain.
        processes: Of the whole run.
        strategy: Whether they share the weights out.
    """

    quant: QuantKind
    rank: int
    rows: int
    length: int
    value_bytes: int
    double: bool = True
    keep_dequantized: Choice = Choice.auto
    targets: tuple[str, ...] = ("all-linear",)
    checkpointing: Choice = Choice.auto
    is_eager: bool = False
    is_cpu: bool = False
    has_fused_head: bool = False
    may_run_by_hand: bool = False
    answers: int = 1
    processes: int = 1
    strategy: Strategy = Strategy.ddp

    @classmethod
    def of_config(cls, config: TrainConfig, longest: int, value_bytes: int, device_type: str) -> "Demand":
        """Read it from a configuration, the longest row of the data, the bytes of a value and `cpu` or `cuda`."""
        hardware, lora = config.hardware, config.lora
        is_cpu = device_type == "cpu"
        may_run_by_hand = (
            hardware.fused_head
            and hardware.fused_layers is not Choice.never
            and not lora.dropout
            and lora.targets == ["all-linear"]
            and (hardware.world == 1 or hardware.strategy is not Strategy.fsdp2)
        )
        return cls(
            quant=config.quant.kind,
            double=config.quant.double,
            keep_dequantized=config.quant.keep_dequantized,
            rank=lora.rank,
            targets=tuple(lora.targets),
            rows=micro_batch_of(config),
            answers=2 if config.method.is_dpo else 1,
            length=min(longest, config.trainer.max_length),
            value_bytes=value_bytes,
            checkpointing=hardware.gradient_checkpointing,
            is_eager=hardware.attention == "eager",
            is_cpu=is_cpu,
            has_fused_head=hardware.fused_head and (is_cpu or may_run_by_hand),
            may_run_by_hand=may_run_by_hand,
            processes=hardware.world,
            strategy=hardware.strategy,
        )

    @property
    def tokens(self) -> int:
        """Tokens at once, if every row were as long as the longest."""
        return self.rows * self.answers * self.length


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
            is_llama=config.get("architectures", ["LlamaForCausalLM"]) == ["LlamaForCausalLM"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{model_folder / 'config.json'}: wanted a decoder's config, found {error!r} missing or wrong. Import it."
        ) from error


def count_base(shape: Shape, demand: Demand, *, is_dequantized: bool) -> int:
    """Return the bytes of the frozen weights in one process.

    FSDP2 shares them out, and holds two layers whole at a time: the one that computes and the one that is fetched.
    """
    is_nf4 = demand.quant is QuantKind.nf4 and not is_dequantized
    weight_bytes = NF4_BYTES[demand.double] if is_nf4 else demand.value_bytes
    linear = int(shape.linear_parameters * weight_bytes)
    plain = shape.embedding_parameters * demand.value_bytes
    # The product with a 4-bit layer makes its weights anew, one layer at a time; by hand, gate and up as one.
    joined = 2 if demand.may_run_by_hand and not demand.is_cpu else 1
    scratch = joined * max(prod(size) for size in shape.linear_sizes().values()) * demand.value_bytes if is_nf4 else 0
    if demand.strategy is Strategy.fsdp2 and demand.processes > 1:
        return (linear + plain) // demand.processes + 2 * linear // shape.layers + plain + scratch
    return linear + plain + scratch


def count_loading(shape: Shape, demand: Demand) -> int:
    """Return the bytes while the base loads: under FSDP2 each process first holds all of it, then its share."""
    whole = replace(demand, strategy=Strategy.ddp)
    return count_base(shape, whole, is_dequantized=False) + RUNTIME_BYTES["cpu" if demand.is_cpu else "card"]


def count_adapter(shape: Shape, demand: Demand) -> int:
    """Return the bytes of the adapter, its gradient and its optimizer's state in one process."""
    parameters = shape.adapter_parameters(demand.rank, list(demand.targets))
    if demand.processes == 1:
        return parameters * ADAPTER_BYTES
    if demand.strategy is Strategy.fsdp2:
        return parameters * ADAPTER_BYTES // demand.processes + 8 * parameters // shape.layers
    return parameters * (ADAPTER_BYTES + 4)  # data parallel: the gradients lie in buckets


def count_activations(shape: Shape, demand: Demand, *, is_recomputed: bool) -> int:
    """Return the bytes that wait for the backward pass, and those in flight in the layer that computes.

    Counted on transformers' Llama under PEFT, a token and a layer: both norms keep their input in float32; the linear
    layers' inputs are kept for the adapters; attention keeps q, k, v and its output; the MLP gate, its activation, up
    and their product. Under autocast each adapter casts its input for itself.
    """
    tokens, value = demand.tokens, demand.value_bytes
    copies = 5 if value < 4 else 2  # inputs of q, k, v and of gate, up: one each, or shared where nothing is cast
    norms = 2 * 4 * shape.hidden
    attention = (2 * shape.queries + 2 * shape.keys + shape.queries) * value
    if demand.is_eager:
        # softmax in float32, its copy in the compute dtype, and k and v repeated for every head
        attention += shape.heads * demand.length * (4 if value == 4 else 4 + value) + 2 * shape.queries * value
    adapters = len(shape.linear_sizes()) * demand.rank * value
    layer = tokens * (norms + attention + (copies * shape.hidden + 4 * shape.intermediate) * value + adapters)
    # The backward pass of the MLP holds the gradients of gate, up and their product beside all that.
    flight = tokens * (3 * shape.intermediate + 2 * shape.hidden) * value
    if demand.is_eager:
        flight += 2 * tokens * shape.heads * demand.length * 4
    # Measured: the same with and without recomputing.
    scraps = int(HEAP_SCRAPS * shape.layers * layer) if demand.is_cpu and value == 4 else 0
    if is_recomputed:
        return layer + flight + shape.layers * tokens * shape.hidden * value + scraps
    return shape.layers * layer + flight + scraps


def count_activations_by_hand(shape: Shape, demand: Demand, *, is_recomputed: bool = False) -> int:
    """Return the same for the layers by hand (train/layers.py), which keep what their backward passes need.

    A token and a layer: the inputs of both halves, q, k, v and the mixed values, gate and up, and what each adapter
    made of its input. In flight is the larger backward pass: the MLP's with four products and three inputs, or the
    attention's with the gradient of q, k, v and, of one block of queries, weights and their gradients.
    """
    tokens, value = demand.tokens, demand.value_bytes
    narrow = len(shape.linear_sizes()) * demand.rank
    heads = shape.queries + 2 * shape.keys
    layer = tokens * ((2 * shape.hidden + heads + shape.queries + 2 * shape.intermediate + narrow) * value + 2 * 4)
    joined = shape.layers * shape.hidden * (heads + 2 * shape.intermediate) * value
    rows = demand.rows * demand.answers
    weights = rows * shape.heads * demand.length
    # What a kernel of a card keeps of its softmax is one number a head; it holds no weights and no blocks.
    layer += min(weights * demand.length // 2, KEPT_WEIGHTS) * value if demand.is_cpu else 4 * tokens * shape.heads
    mlp = tokens * (5 * shape.intermediate + 3 * shape.hidden) * value
    attention = tokens * ((3 * heads + 2 * shape.hidden) * value + 2 * 4 * shape.keys)
    attention += 3 * weights * min(demand.length, ATTENTION_BLOCK) * value if demand.is_cpu else 0
    adapters = shape.adapter_parameters(demand.rank) * value * 2  # copies of the compute dtype, several layers as one
    kept = shape.layers * layer
    scraps = 0
    if is_recomputed:
        inputs = shape.layers * tokens * shape.hidden * value
        return layer + inputs + max(mlp, attention) + adapters // shape.layers
    if value == 4 and demand.is_cpu:  # measured; the weights that were joined leave holes where they came as they are
        scraps = int(HEAP_SCRAPS_BY_HAND * kept) + (joined if demand.quant is QuantKind.none else 0)
    return kept + max(mlp, attention) + adapters + scraps


def count_logits(shape: Shape, demand: Demand, *, is_recomputed: bool = False) -> int:
    """Return the bytes of the logits in flight: computed in pieces, each with its softmax and its gradient."""
    chunk, copies = (FUSED_CHUNK_LOGITS, 2) if demand.has_fused_head else (CHUNK_LOGITS, 3)
    if demand.has_fused_head and not demand.is_cpu:
        chunk = CARD_CHUNK_LOGITS[is_recomputed]
    piece = min(demand.tokens * shape.vocabulary, max(chunk, shape.vocabulary))
    return piece * (copies * 4 + (2 * demand.value_bytes if demand.value_bytes < 4 else 0))
