"""Who gets how much of one card's memory: vLLM, the embedder, the reranker, the indexes, a training job beside them.

The others' needs are counted from files and tables; vLLM gets what is left, and its `gpu_memory_utilization` follows
from that. Whether it is enough for the model is checked before anything starts. Knows files, not processes; what a card
has is serve/hardware.py's to say, what a training run needs train/memory.py's.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, ContractError
from serve.engine_command import EngineConfig

GIB = 2**30
CONTEXT_BYTES = int(0.6 * GIB)
"""A process's CUDA context with its libraries: an assumption until a card has been measured."""
ENCODER_SCRATCH_BYTES = int(0.5 * GIB)
"""What an embedder or a reranker holds beside its weights at its largest batch: likewise."""
INDEX_SCRATCH_BYTES = 256 * 2**20
"""FAISS's working memory beside its vectors, as in retrieval/card_index.py."""
ENGINE_RUNTIME_BYTES = int(1.5 * GIB)
"""vLLM's activations and captured graphs beside weights and cache: likewise."""
SPARE = 0.03
"""Share of the card that nobody is given."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model's folder decides the engine's memory.

    Attributes:
        weights: Bytes of the weights as they are served, in 16 bits.
        cache_a_token: Bytes of keys and values of one token.
        adapter_a_rank: Bytes of an adapter on every linear layer, for each rank.
    """

    weights: int
    cache_a_token: int
    adapter_a_rank: int


@dataclass(frozen=True, slots=True)
class CardBudget:
    """The shares of a card.

    Attributes:
        card: Its bytes.
        shares: Bytes by user, the engine's apart.
        engine: Bytes for vLLM.
        cache_tokens: Tokens of keys and values that fit beside the model in what vLLM is told.
    """

    card: int
    shares: dict[str, int]
    engine: int
    cache_tokens: int

    @property
    def utilization(self) -> float:
        """What vLLM is told, rounded down to a hundredth."""
        return _round_share(self.engine, self.card) / 100

    def describe(self) -> str:
        """Return one line for people."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.shares.items())
        engine = f"vLLM {self.engine / GIB:.1f} (utilization {self.utilization:.2f}, {self.cache_tokens:,} tokens)"
        return f"card         {self.card / GIB:.1f} GiB: {engine}, {parts}"


def _round_share(size: int, card: int) -> int:
    """Return hundredths of a card, rounded down: what a utilization can say. A share that was set stays what it is."""
    return int(100 * size / card + 1e-6)


def read_model_size(folder: Path) -> ModelSize:
    """Read a model's size from its config and its weight files.

    Raises:
        ContractError: The config lacks what a decoder's has.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        layers, hidden, heads = (
            int(config[key]) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        inner, head = int(config["intermediate_size"]), int(config.get("head_dim") or hidden // heads)
        keys = int(config.get("num_key_value_heads") or heads) * head
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{path}: wanted a decoder's config, found {error!r} missing or wrong. Import it."
        ) from error
    queries = heads * head
    widths = (hidden + queries) + 2 * (hidden + keys) + (queries + hidden) + 3 * (hidden + inner)
    value = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype")) else 2
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) * 2 // value
    return ModelSize(weights, 2 * 2 * layers * keys, 2 * layers * widths)


def measure_encoder(folder: Path | None) -> int:
    """Return the bytes of an embedder or a reranker on a card; nothing for none. Files in 32 bits are loaded in 16."""
    if folder is None:
        return 0
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return size // 2 + ENCODER_SCRATCH_BYTES


def plan_card(
    card: int, model: ModelSize, engine: EngineConfig, encoders: dict[str, int], index: int, trainer: int
) -> CardBudget:
    """Divide a card.

    Args:
        card: Its bytes.
        model: The base model's size.
        engine: Its settings; a `gpu_memory_utilization` that is set stays the engine's upper limit.
        encoders: Bytes of the embedder and the reranker.
        index: Bytes of the vectors that FAISS holds on the card.
        trainer: Bytes for a training job that runs beside the server; 0 where none does.

    Raises:
        ConfigError: What is left is not enough for the model and one answer of full length.
    """
    shares = {name: size for name, size in encoders.items() if size}
    shares |= {"indexes": index + INDEX_SCRATCH_BYTES} if index else {}
    if shares:
        shares["the gateway's context"] = CONTEXT_BYTES
    shares |= {"a training job": trainer} if trainer else {}
    shares["spare"] = int(SPARE * card)
    left = card - sum(shares.values())
    if engine.gpu_memory_utilization is not None:
        left = min(left, int(engine.gpu_memory_utilization * card))
    told = _round_share(left, card) * card // 100
    adapters = (engine.max_loras or 1) * (engine.max_lora_rank or 16) * model.adapter_a_rank
    fixed = (model.weights + adapters) // engine.tensor_parallel_size + ENGINE_RUNTIME_BYTES
    length = engine.max_model_len or 2048
    a_token = max(1, model.cache_a_token // engine.tensor_parallel_size)
    tokens = max(0, (told - fixed) // a_token)
    if tokens < length:
        needed = (fixed + length * a_token) / GIB
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in shares.items())
        raise ConfigError(
            f"engine: wanted {needed:.1f} GiB of the card for the model, its adapters and one answer of {length:,} "
            f"tokens, found {max(0, told) / GIB:.1f} of {card / GIB:.1f} left ({parts} GiB). What would help: "
            "a smaller engine.max_model_len, engine.max_loras=1, search.index_device=cpu, embedder.device=cpu.",
            param="engine",
        )
    return CardBudget(card, shares, left, tokens)
