"""The probe of scripts/bench_gpu.py: which machine this is, and the two ceilings that speeds are held against.

Matrix products in the dtype of training, and bytes moved by a copy. Both are checked before they are timed. Asks
nvidia-smi for what torch does not know, and changes no setting of the card.
"""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from scripts.bench_gpu_ceiling import compute_ceiling
from scripts.bench_gpu_steps import Figure, Setting, Step, compare, time_calls

PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets", "sentence-transformers",
    "faiss-gpu", "faiss-cpu", "vllm", "flash-attn", "flash-attn-4", "liger-kernel", "hydra-core", "unsloth",
)  # fmt: skip
"""Packages whose versions a measurement depends on."""
CARD_QUESTIONS = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "persistence_mode",
    "temperature.gpu", "mig.mode.current",
)  # fmt: skip


def describe_machine(device: torch.device, size: str) -> dict[str, Any]:
    """Return hardware, clocks, versions and commit, and which of it makes two measurements comparable."""
    versions = {name: found for name in PACKAGES if (found := read_version(name))}
    machine: dict[str, Any] = {
        "device": str(device),
        "name": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": read_commit(),
        "size": size,
    }
    if device.type == "cuda":
        values = torch.cuda.get_device_properties(device)
        machine |= {
            "name": values.name,
            "memory_gib": round(values.total_memory / 2**30, 1),
            "capability": f"{values.major}.{values.minor}",
            "multiprocessors": values.multi_processor_count,
            "cuda": torch.version.cuda,
            "card": ask_card(),
        }
    machine["identity"] = [machine["name"], size, machine["commit"], versions.get("torch")]
    return machine


def read_version(package: str) -> str | None:
    """Return an installed package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_commit() -> str:
    """Return the commit that is checked out, with a plus where files are changed; `unknown` where nobody can tell.

    Of a copy without git, LOAM_COMMIT tells.
    """
    git, told = shutil.which("git"), os.environ.get("LOAM_COMMIT") or "unknown"
    if git is None:
        return told
    here = Path(__file__).resolve().parent
    answers = [
        subprocess.run([git, *question], cwd=here, capture_output=True, text=True, check=False)
        for question in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    if any(answer.returncode for answer in answers):
        return told
    return answers[0].stdout.strip() + ("+" if answers[1].stdout.strip() else "")


def ask_card() -> dict[str, str]:
    """Return what nvidia-smi says of the first card that torch may see, or why it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"error": "nvidia-smi is not there"}
    first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").partition(",")[0]
    question = [program, "-i", first, f"--query-gpu={','.join(CARD_QUESTIONS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)[:200]}
    if answer.returncode:
        return {"error": (answer.stderr or answer.stdout).strip()[:200]}
    return dict(zip(CARD_QUESTIONS, (value.strip() for value in answer.stdout.split(",")), strict=False))


def measure_products(setting: Setting) -> list[Figure]:
    """Time large matrix products, after one was compared with float64."""
    device, dtype = setting.device, setting.dtype
    size = setting.pick(8192, 256)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(256, 256, generator=generator).to(device, dtype) for _ in "ab")
    checked = compare("product's error", left @ right, left.double() @ right.double(), 1e-2)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    seconds = time_calls(lambda: left @ right, device, setting.pick(20, 3))
    figures = [checked, Figure("matrix products", 2 * size**3 / seconds / 1e12, "TFLOP/s")]
    clock = ask_card().get("clocks.sm", "") if device.type == "cuda" else ""  # idle, a card tells a lower one
    found = re.match(r"\d+", clock)
    return [*figures, *([Figure("clock just after", float(found[0]), "MHz")] if found else [])]


def measure_copy(setting: Setting) -> list[Figure]:
    """Time a large copy; bytes read and bytes written both count."""
    values = torch.randn(setting.pick(2**30, 2**18), device=setting.device, dtype=torch.float32)
    target = torch.full_like(values, float("nan"))
    seconds = time_calls(lambda: target.copy_(values), setting.device, setting.pick(10, 3))
    checked = compare("copy's error", target[: 2**16], values[: 2**16], 0)
    return [checked, Figure("memory bandwidth", 2 * 4 * values.numel() / seconds / 1e9, "GB/s")]


STEPS = (
    Step("products", measure_products),
    Step("copy", measure_copy),
    Step("a token at least, computed", compute_ceiling),
)
