"""Loads the base model in NF4 (or plain) and puts the adapter on it.

The base is frozen; only the adapter's float32 values train. Where memory allows, the 4-bit weights' exact values are
kept dequantized, so that they are not computed anew in every layer of every step. Does not know the data.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ConfigError, ContractError
from train.config import LoraConfig, QuantConfig, QuantKind
from train.hardware import Machine

logger = logging.getLogger(__name__)


def load_tokenizer(folder: Path) -> Any:
    """Load a base model's tokenizer; a missing padding token becomes the model's own reserved one or the stop token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token is None:
        reserved = "<|finetune_right_pad_id|>"  # Llama 3 keeps one for this
        tokenizer.pad_token = reserved if reserved in tokenizer.get_vocab() else tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def quiet_libraries() -> None:
    """Leave out what would only puzzle a reader of the log: a look-up by name on a hub, bars without a terminal."""
    from transformers.utils.logging import disable_progress_bar

    # PEFT looks the base up by its name whenever it saves.
    warnings.filterwarnings("ignore", message="Could not find a config file in", category=UserWarning)
    if not sys.stderr.isatty():
        disable_progress_bar()


def load_base(folder: Path, quant: QuantConfig, machine: Machine, attention: str, *, is_sharded: bool = False) -> Any:
    """Load a base model for training.

    Args:
        folder: Hugging Face layout, safetensors.
        quant: How to hold the weights.
        machine: Where, and in which dtype to compute.
        attention: Attention implementation.
        is_sharded: Whether FSDP2 will share the weights out: 4-bit codes are then stored in the compute dtype, because
            it cuts up only what it takes for floating-point values.

    Returns:
        A frozen causal language model.

    Raises:
        ContractError: The folder does not hold what its config says.
        ConfigError: The attention implementation is unknown or not installed.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quiet_libraries()
    options: dict[str, Any] = {
        "dtype": machine.dtype,
        "device_map": {"": machine.device},
        "attn_implementation": attention,
        "local_files_only": True,
        "use_safetensors": True,
    }
    if quant.kind is QuantKind.nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quant.double,
            bnb_4bit_compute_dtype=machine.dtype,
            bnb_4bit_quant_storage=machine.dtype if is_sharded else torch.uint8,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (ImportError, OSError, ValueError, KeyError) as error:
        if "attn_implementation" in str(error) or "FlashAttention" in str(error):
            problem = f"hardware.attention: wanted {attention}, found that it does not run here ({error})"
            raise ConfigError(f"{problem}. Use hardware.attention=sdpa.", param="hardware.attention") from error
        if isinstance(error, ImportError):
            raise
        raise ContractError(f"{folder}: the model cannot be loaded ({error}). Import it again.") from error
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def keep_dequantized(model: nn.Module) -> int:
    """Replace every 4-bit layer by a plain one that holds the 4-bit weights' exact values.

    The product is the same to the bit: bitsandbytes computes the same values from the 4-bit codes before each product.

    Returns:
        Bytes that the values take.
    """
    from bitsandbytes.nn.modules import Linear4bit

    size_bytes = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = dequantize(layer)
                setattr(parent, name, plain)
                size_bytes += plain.weight.numel() * plain.weight.element_size()
    return size_bytes


def dequantize(layer: Any) -> nn.Linear:
    """Return a plain linear layer with the exact values of a 4-bit one, in its compute dtype, frozen."""
    import bitsandbytes.functional as bnb_functional

    values = bnb_functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(values, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return plain


def add_adapter(model: Any, lora: LoraConfig, base_name: str, seed: int) -> Any:
    """Put a fresh LoRA adapter on a base model.

    Args:
        model: The frozen base.
        lora: Rank, scale and targets.
        base_name: Written into the adapter instead of this machine's path.
        seed: Of the adapter's first values.

    Returns:
        The PEFT model; only the adapter trains.

    Raises:
        ConfigError: A target is none of the base's linear layers.
    """
    import peft
    from transformers import set_seed

    set_seed(seed)
    all_linear = lora.targets == ["all-linear"]
    if not all_linear:
        check_targets(model, lora.targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if all_linear else lora.targets,
        base_model_name_or_path=base_name,
    )
    model.name_or_path = base_name  # what PEFT writes into the adapter: a name, not this machine's path
    adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def check_targets(model: Any, targets: list[str]) -> None:
    """Refuse names that no linear layer has: PEFT passes over them in silence as long as one of the others fits.

    Raises:
        ConfigError: There are some; the names that there are stand beside them.
    """
    head = model.get_output_embeddings()
    linears = [
        f".{name}" for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    ]
    if unknown := [name for name in targets if not any(linear.endswith(f".{name}") for linear in linears)]:
        known = ", ".join(sorted({linear.rpartition(".")[2] for linear in linears}))
        raise ConfigError(
            f"lora.targets: wanted names of the model's linear layers ({known}), found {', '.join(unknown)}.",
            param="lora.targets",
        )


def describe(model: nn.Module) -> str:
    """Return one line for people: how many parameters train, and what the model's weights take in memory."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return f"{trained / 1e6:.1f} million parameters train; weights take {size_bytes / 2**20:,.0f} MiB"


def restore_float32(model: nn.Module) -> None:
    """Keep the adapter in float32: TRL rounds it to bfloat16 on a 4-bit base, where small updates would be lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def fuse_with_liger(model: Any) -> str:
    """Put Liger's fused norm, rotation and gate into a Llama's own layers, where the package is there and fits.

    Its fused loss stays out: TRL's head, or ours, computes the loss. Nothing is fetched.

    Args:
        model: The base model inside the adapter.

    Returns:
        One line for people: whether, and if not, why.
    """
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError:
        return "layers: the model's own; Liger's kernels, which come with the CUDA set, are not installed"
    if model.config.model_type != "llama":
        return f"layers: the model's own; Liger's kernels are used for Llama only, this is {model.config.model_type}"
    apply_liger_kernel_to_llama(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )
    return "layers: the model's own, with Liger's kernels"
