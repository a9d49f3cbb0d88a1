"""Merging: weights with the adapter in them, W + scale * B @ A, onto the base's own weights or NF4-rounded ones.

Works on one tensor after the other, from the base's safetensors to new ones, so that a model that is larger than memory
can be merged; and in place on a loaded model, for measuring. Sums are made in float32 and rounded once, to the dtype in
which the base is stored. Does not know data, runs or manifests.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import ContractError

PREFIX = "base_model.model."
"""What PEFT puts before the name of each of the base's modules."""
NF4_BLOCK = 64
"""Weights that share one scale in NF4, as bitsandbytes quantizes a linear layer."""
MAX_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Rounding:
    """How training held the base's linear layers.

    Attributes:
        names: Weights that were rounded.
        double: Whether the scales were quantized too.
        dtype: What the weights were before and came back as.
    """

    names: frozenset[str]
    double: bool
    dtype: torch.dtype

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as training multiplied with it; weights that were not rounded come back as they are."""
        if name not in self.names:
            return weight
        import bitsandbytes.functional as bnb_functional

        codes, state = bnb_functional.quantize_4bit(
            weight.to(self.dtype).contiguous(), blocksize=NF4_BLOCK, compress_statistics=self.double, quant_type="nf4"
        )
        return bnb_functional.dequantize_4bit(codes, state)


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter adds to its base.

    Attributes:
        pairs: A (rank, in) and B (out, rank) by the name of the base's weight.
        scale: What each product is multiplied by.
    """

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float

    @classmethod
    def read(cls, adapter: Path) -> "Delta":
        """Read a published adapter's folder.

        Raises:
            ContractError: It holds something else than plain LoRA on linear layers.
        """
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        for key in ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias"):
            if config.get(key):
                raise ContractError(f"{adapter}: wanted a plain LoRA, found {key}. Merge it with what trained it.")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        sides: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in load_file(adapter / "adapter_model.safetensors").items():
            module, _, side = key.removeprefix(PREFIX).rpartition(".lora_")
            sides.setdefault(f"{module}.weight", {})[side] = value
        odd = [name for name, side in sides.items() if set(side) != {"A.weight", "B.weight"}]
        if odd:
            raise ContractError(f"{adapter}: wanted A and B of each layer, found others: {_shorten(odd)}.")
        pairs = {name: (side["A.weight"], side["B.weight"]) for name, side in sides.items()}
        return cls(pairs, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)

    def check_names(self, names: set[str]) -> None:
        """Check that the base has every weight that the adapter adds to.

        Raises:
            ContractError: It has not.
        """
        if missing := sorted(self.pairs.keys() - names):
            raise ContractError(
                f"wanted {len(self.pairs)} weights of the base for the adapter to add to, found that it has not "
                f"{_shorten(missing)}. Merge onto the base that the adapter was trained on."
            )

    def add(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return weight + scale * B @ A in float32; a weight that the adapter leaves alone comes back as it is."""
        pair = self.pairs.get(name)
        if pair is None:
            return weight
        a, b = (side.to(weight.device, torch.float32) for side in pair)
        return weight.float() + self.scale * (b @ a)  # (out, in)


def merge_weight(name: str, weight: torch.Tensor, delta: Delta, rounding: Rounding | None) -> torch.Tensor:
    """Return a base's weight with the adapter in it, in the dtype that it came in.

    Args:
        name: Of the weight.
        weight: As the base stores it.
        delta: What the adapter adds.
        rounding: How training held the base, to merge onto what the adapter was trained against; None for the original.
    """
    held = weight if rounding is None else rounding.apply(name, weight)
    return delta.add(name, held).to(weight.dtype)


def merge_files(
    base: Path, folder: Path, delta: Delta, rounding: Rounding | None, tell: Callable[[int, int], None]
) -> None:
    """Write a base's model folder anew with the adapter in its weights, one file of weights after the other.

    Args:
        base: Folder in Hugging Face layout.
        folder: Empty; takes the merged weights and a copy of everything else.
        delta: What the adapter adds.
        rounding: As in `merge_weight`.
        tell: Told how many of the files of weights are done.

    Raises:
        ContractError: The base lacks a weight that the adapter adds to.
    """
    files = sorted(base.glob("*.safetensors"))
    names: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as weights:
            names.update(weights.keys())
    delta.check_names(names)
    for done, path in enumerate(files, start=1):
        with safe_open(path, framework="pt") as weights:
            merged = {name: merge_weight(name, weights.get_tensor(name), delta, rounding) for name in weights.keys()}  # noqa: SIM118
            save_file(merged, folder / path.name, metadata=weights.metadata())
        tell(done, len(files))
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)


def merge_model(model: nn.Module, delta: Delta, rounding: Rounding | None, dtype: torch.dtype) -> None:
    """Put the adapter into a loaded base's weights, rounded as `merge_files` would store them.

    Args:
        model: The base; its weights are replaced.
        delta: What the adapter adds.
        rounding: As in `merge_weight`.
        dtype: In which the base stores its weights.
    """
    parameters = dict(model.named_parameters())
    delta.check_names(set(parameters))
    for name, parameter in parameters.items():
        parameter.data = merge_weight(name, parameter.data.to(dtype), delta, rounding).to(parameter.dtype)


def list_rounded(model: Any) -> frozenset[str]:
    """Return the weights that 4-bit loading rounds: those of every linear layer but the head.

    Args:
        model: The base, held plainly.
    """
    head = model.get_output_embeddings()
    return frozenset(
        f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    )


def build_skeleton(base: Path) -> Any:
    """Return the base's model without values, to learn what layers it has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))


def read_stored_dtype(base: Path) -> torch.dtype:
    """Return the dtype in which a base stores its weights."""
    path = next(iter(sorted(base.glob("*.safetensors"))))
    with safe_open(path, framework="pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype  # type: ignore[no-any-return]


def name_dtype(name: str) -> torch.dtype:
    """Return the dtype that an adapter's manifest names, as `torch.float32`."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ContractError(f"quantization.dtype: wanted a dtype of torch, found {name!r}. Train again.")
    return dtype


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more
