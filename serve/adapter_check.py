"""Is this adapter whole, ours, and one that vLLM can serve? Asked before an adapter is served, in Python alone.

The manifest proves the files; the weights' own header is read too, because vLLM would read it: its size, names, shapes
and places must be those of a plain LoRA adapter of the rank that the manifest tells, and every number a finite one: in
a batch of several adapters, one that holds NaN must not be served. No weight is loaded, no code in a file is run. Does
not know where adapters come from.
"""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ContractError
from core.manifest import AdapterManifest, BaseIdentity, check_adapter

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
KEPT_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE})
MAX_HEADER_BYTES = 16 * 2**20
MAX_CONFIG_BYTES = 2**20
PLAIN_INITIALIZATIONS = frozenset({"True", "true", "False", "false", "gaussian", "None"})
WEIGHT_NAME = re.compile(r"base_model\.model\.[\w.]+\.lora_([AB])\.weight")
WEIGHT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
EXPONENTS = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
"""The integer of a number's width, and the bits that are all set in NaN and infinity alone (IEEE 754; bfloat16)."""


def check_served_adapter(folder: Path, base: BaseIdentity, max_rank: int) -> AdapterManifest:
    """Check everything about an adapter that can be known without loading it.

    Args:
        folder: The adapter's folder.
        base: The identity of the base model that is served.
        max_rank: The largest LoRA rank that the engine was started for.

    Returns:
        The adapter's manifest.

    Raises:
        LoamError: Something is wrong; the message names the file and what differs.
    """
    manifest = check_adapter(folder, base, max_rank)
    if manifest.files.keys() != KEPT_FILES:
        raise ContractError(
            f"adapter {manifest.run_id}: wanted the files {', '.join(sorted(KEPT_FILES))}, found "
            f"{', '.join(sorted(manifest.files)) or 'none'}. Train it again."
        )
    faults = check_config(folder / CONFIG_FILE, manifest) + check_weights(folder / WEIGHTS_FILE, manifest)
    if faults:
        raise ContractError(f"adapter {manifest.run_id}: vLLM cannot serve {'; '.join(faults)}. Train it again.")
    return manifest


def check_config(path: Path, manifest: AdapterManifest) -> list[str]:
    """Return what in a PEFT configuration is no plain LoRA of the manifest's rank."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        return [f"{path.name} of {path.stat().st_size} bytes"]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return [f"{path.name}, which is no JSON ({type(error).__name__})"]
    if not isinstance(config, dict):
        return [f"{path.name}, which is no JSON object"]
    faults = find_unservable(config)
    rank = manifest.lora["rank"]
    if config.get("peft_type") != "LORA":
        faults.append(f"{path.name} with peft_type {config.get('peft_type')!r:.40}")
    if config.get("r") != rank:
        faults.append(f"{path.name} with r {config.get('r')!r:.40}, where the manifest says {rank}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        faults.append(f"{path.name} with ranks or scales by layer")
    if config.get("auto_mapping"):
        faults.append(f"{path.name} with auto_mapping, which would import code")
    return faults


def find_unservable(adapter: dict[str, Any]) -> list[str]:
    """Return what in a PEFT configuration vLLM 0.32 refuses. Source: vllm/lora/peft_helper.py and docs of PEFT."""
    checks = {
        "DoRA": bool(adapter.get("use_dora")),
        "modules_to_save": bool(adapter.get("modules_to_save")),
        "a bias": adapter.get("bias", "none") != "none" or bool(adapter.get("lora_bias")),
        "aLoRA": bool(adapter.get("alora_invocation_tokens")),
        "an initialization that changed the base": str(adapter.get("init_lora_weights")) not in PLAIN_INITIALIZATIONS,
    }
    return [name for name, is_found in checks.items() if is_found]


def check_weights(path: Path, manifest: AdapterManifest) -> list[str]:
    """Return what in a safetensors file is no plain LoRA of the manifest's rank.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        header, content_bytes = _read_header(path)
        places = [_check_tensor(name, entry, int(manifest.lora["rank"])) for name, entry in header.items()]
        ends = 0
        for begin, end in sorted(places):
            if begin != ends:
                raise _BrokenWeightsError("weights that overlap or leave a gap")
            ends = end
        if ends != content_bytes or not ends:
            raise _BrokenWeightsError(f"{content_bytes} bytes of weights for {ends}")
        _check_numbers(path, header, path.stat().st_size - content_bytes)
    except _BrokenWeightsError as error:
        return [f"{path.name} with {error}"]
    return []


class _BrokenWeightsError(Exception):
    """What is wrong with a file of weights, as it stands behind «with»."""


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file says of its weights, and how many bytes they have together."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _BrokenWeightsError(f"a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _BrokenWeightsError(f"a header that is no JSON ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise _BrokenWeightsError("a header that is no JSON object")
    header.pop("__metadata__", None)
    return header, size - 8 - length


def _check_tensor(name: str, entry: Any, rank: int) -> tuple[int, int]:
    """Return where a weight's bytes lie."""
    match = WEIGHT_NAME.fullmatch(name)
    if match is None:
        raise _BrokenWeightsError(f"the weight {name!r:.100}")
    try:
        kind, shape, (begin, end) = entry["dtype"], [int(part) for part in entry["shape"]], entry["data_offsets"]
        wanted = math.prod(shape) * WEIGHT_BYTES[kind]
        is_good = len(shape) == 2 and 0 <= begin <= end and end - begin == wanted
    except (KeyError, TypeError, ValueError) as error:
        raise _BrokenWeightsError(f"a broken entry for {name!r:.100}") from error
    if not is_good:
        raise _BrokenWeightsError(f"a broken entry for {name!r:.100}")
    if shape[0 if match[1] == "A" else 1] != rank:
        raise _BrokenWeightsError(f"{name!r:.100} of shape {shape}, where the rank is {rank}")
    return begin, end


def _check_numbers(path: Path, header: dict[str, Any], offset: int) -> None:
    """Read every weight as integers, and refuse what is NaN or infinite."""
    content = np.memmap(path, dtype=np.uint8, mode="r", offset=offset)
    for name, entry in header.items():
        kind, exponent = EXPONENTS[entry["dtype"]]
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(content[begin:end].tobytes(), dtype=kind)
        if bool(((numbers & exponent) == exponent).any()):
            raise _BrokenWeightsError(f"{name!r:.100}, which holds NaN or infinity")
