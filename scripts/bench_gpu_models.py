"""Random models and made-up rows for scripts/bench_gpu.py: Llama-3.2-3B's shape on a card, a tiny one in the small.

Speed does not depend on what the weights say, so nothing has to be downloaded. Does not know what is measured.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.bench_gpu_steps import Setting
from train.config import LoraConfig
from train.footprint import Shape
from train.model import add_adapter
from train.tokens import IGNORED

LLAMA_3B: dict[str, Any] = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip
"""Of Llama-3.2-3B's config.json."""
SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "tie_word_embeddings": True,
}  # fmt: skip
MINILM: dict[str, Any] = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "vocab_size": 30522,
}  # fmt: skip
SMALL_BERT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 500,
}  # fmt: skip
PACK_TOKENS = 2048
RANK = 16


def make_shape(values: dict[str, Any]) -> Shape:
    """Return the shape that operations are counted by."""
    return Shape(
        values["hidden_size"],
        values["intermediate_size"],
        values["num_hidden_layers"],
        values["num_attention_heads"],
        values["num_key_value_heads"],
        values["head_dim"],
        values["vocab_size"],
        values["tie_word_embeddings"],
    )


def make_base(
    setting: Setting, *, is_packed: bool = False, shape: dict[str, Any] | None = None, attention: str = "sdpa"
) -> Any:
    """Return a frozen random Llama.

    Args:
        setting: Where and at which size.
        is_packed: Whether its linear layers hold NF4 codes.
        shape: Its own; None: of the setting's size.
        attention: Of its own layers, as transformers names it.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 5e5}
    config = LlamaConfig(**(shape or setting.pick(LLAMA_3B, SMALL)), max_position_embeddings=8192, rope_parameters=rope)
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0 if is_packed else layers
    with torch.device(setting.device):
        base: Any = AutoModelForCausalLM.from_config(config, dtype=setting.dtype, attn_implementation=attention)
    if is_packed:
        add_packed_layers(base, layers, setting)
    base.requires_grad_(False)
    base.config.use_cache = False
    return base


def add_packed_layers(base: Any, count: int, setting: Setting) -> None:
    """Add layers whose linear weights are NF4 codes, one by one: a card that has room for the codes has no more.

    Args:
        base: A random Llama without layers.
        count: How many it gets.
        setting: Where.
    """
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    for number in range(count):
        with torch.device(setting.device):
            layer = LlamaDecoderLayer(base.config, number).to(setting.dtype)
        pack_linears(layer, setting.dtype)
        base.model.layers.append(layer)
    base.config.num_hidden_layers = count
    base.is_loaded_in_4bit = True  # what PEFT asks for


def adapt(base: Any) -> Any:
    """Put an adapter on a base whose both halves get gradients: a fresh one's B is zero."""
    adapted = add_adapter(base, LoraConfig(rank=RANK, alpha=2 * RANK), "random-llama", seed=1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    return adapted


def write_adapters(base: Any, folder: Path, count: int, spread: float) -> list[Path]:
    """Write adapters of rank RANK with random weights for a base; return their folders, `adapter-0` and on.

    Args:
        base: A frozen model; it carries an adapter afterwards.
        folder: Where they go.
        count: How many, each with weights of its own.
        spread: Standard deviation of the half that starts at zero in training (lora_B).
    """
    adapted = adapt(base)
    adapters = []
    for number in range(count):
        torch.manual_seed(number)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=spread)
        adapters.append(folder / f"adapter-{number}")
        adapted.save_pretrained(adapters[-1], save_embedding_layers=False)  # none is trained; PEFT would look it up
    return adapters


def pack_weights(base: Any, dtype: torch.dtype) -> None:
    """Turn the linear weights of a model's layers into NF4 codes."""
    pack_linears(base.model.layers, dtype)
    base.is_loaded_in_4bit = True


def pack_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Turn the linear weights in a module into NF4 codes with double quantization, as loading in 4 bits does."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    make_layer: Any = Linear4bit

    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                packed = make_layer(
                    layer.in_features,
                    layer.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    device="meta",
                )
                weight: Any = Params4bit(
                    layer.weight.data,
                    requires_grad=False,
                    quant_type="nf4",
                    compress_statistics=True,
                    module=packed,
                )
                packed.weight = weight.to(layer.weight.device)
                setattr(parent, name, packed)


def make_packs(setting: Setting, packs: int, length: int = PACK_TOKENS) -> tuple[dict[str, Tensor], list[int]]:
    """Return packs of documents of mixed lengths, every token learned but each one's first, and the lengths.

    Args:
        setting: Where and at which size.
        packs: How many, laid one after the other as TRL's collator does.
        length: Tokens of each.
    """
    chance = random.Random(packs)  # noqa: S311  (made-up data)
    vocabulary = setting.pick(LLAMA_3B, SMALL)["vocab_size"]
    lengths: list[int] = []
    for _ in range(packs):
        left = length
        while left:
            size = min(left, max(8, round(chance.lognormvariate(5.7, 0.9))))
            lengths.append(size)
            left -= size
    positions = torch.cat([torch.arange(size) for size in lengths])
    ids = torch.randint(vocabulary, (sum(lengths),), generator=torch.Generator().manual_seed(packs))
    labels = torch.where(positions == 0, IGNORED, ids)
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return {name: values[None].to(setting.device) for name, values in batch.items()}, lengths


def make_rows(setting: Setting, count: int) -> list[dict[str, list[int]]]:
    """Return rows of mixed lengths as token ids and labels; the second half of each is learned."""
    chance = random.Random(count)  # noqa: S311  (made-up data)
    vocabulary, most = setting.pick(LLAMA_3B, SMALL)["vocab_size"], setting.pick(PACK_TOKENS, 96)
    rows = []
    for _ in range(count):
        length = min(most, max(8, round(chance.lognormvariate(5.7, 0.9) * most / PACK_TOKENS)))
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return rows
