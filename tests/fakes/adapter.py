"""An adapter that nobody trained: valid files with small random weights, made in a moment."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.layout import DataDir
from core.manifest import AdapterManifest, BaseIdentity

TARGETS = {"self_attn.q_proj": "q", "self_attn.v_proj": "kv", "mlp.down_proj": "mlp"}


def write_adapter(
    data: DataDir, run_id: str, model: str, *, rank: int = 8, scale: float = 0.02, template_date: str | None = None
) -> Path:
    """Write runs/<run_id>/adapter with its manifest, as training would.

    Args:
        data: The data directory.
        run_id: Of the run that never was.
        model: Name of the base model there.
        rank: Of the adapter.
        scale: Size of its random weights; 0 leaves the base as it is.
        template_date: What the manifest says.

    Returns:
        The adapter's folder.
    """
    base = data.model(model)
    config = json.loads((base / "config.json").read_text())
    folder = data.run(run_id) / "adapter"
    folder.mkdir(parents=True)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    hidden, widths = config["hidden_size"], {"q": config["num_attention_heads"] * head}
    widths["kv"] = config["num_key_value_heads"] * head
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, kind in TARGETS.items():
            fan_in, fan_out = (config["intermediate_size"], hidden) if kind == "mlp" else (hidden, widths[kind])
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(rank, fan_in, generator=generator) * scale  # (rank, in)
            weights[f"{key}.lora_B.weight"] = torch.randn(fan_out, rank, generator=generator) * scale  # (out, rank)
    save_file(weights, folder / "adapter_model.safetensors")
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[1] for name in TARGETS],
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config))
    AdapterManifest(
        run_id=run_id,
        base=BaseIdentity.of(base),
        method="sft",
        lora={"rank": rank, "alpha": 2 * rank, "dropout": 0.0, "rslora": False, "targets": list(TARGETS)},
        quantization={"kind": "none"},
        data={},
        seed=7,
        template_date=template_date,
        metrics={},
        versions={},
        created_at=int(time.time()),
    ).write(folder)
    return folder
