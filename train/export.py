"""Publishes a trained adapter: PEFT's files, made independent of this machine, and a manifest that proves them.

What is written is what vLLM takes: plain LoRA, safetensors. The folder appears whole or not at all. Does not know how
the adapter was trained.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.failpoints import reach
from core.layout import write_folder, write_json
from core.manifest import AdapterManifest
from train.checkpoint import describe_full_storage

RECORDED_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "tokenizers")
KEPT_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})


def publish_adapter(model: Any, folder: Path, manifest: AdapterManifest, weights: dict[str, Any] | None = None) -> None:
    """Write an adapter and its manifest.

    Args:
        model: The PEFT model.
        folder: runs/<run_id>/adapter.
        manifest: Everything but the files' hashes, which are added.
        weights: The trained parameters by name, where the model holds only shards of them.
    """
    with describe_full_storage(f"write {folder}"), write_folder(folder) as partial:
        # "save_embedding_layers" is said, because its default looks the base model up by name.
        model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False, state_dict=weights)
        reach("adapter.weights_written")
        for path in partial.iterdir():
            if path.name not in KEPT_FILES:
                path.unlink()  # a model card for a hub
        _tidy_config(partial / "adapter_config.json", manifest.base.name)
        manifest.write(partial)
        reach("adapter.hashed")


def _tidy_config(path: Path, base_name: str) -> None:
    """Name the base by its name, and list targets in order (PEFT writes a set), so that equal runs give equal bytes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)


def read_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a run's result."""
    return {name: version(name) for name in RECORDED_PACKAGES}
