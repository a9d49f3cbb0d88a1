"""Which machine is this, and which engine settings fit it? Fills what `hardware=auto` leaves open.

The values stand in conf/engine/<profile>.yaml. Divides one card between vLLM and what shares it.
Asks nvidia-smi and never imports torch, so that it costs nothing.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from core.config import CONF_DIR, Device
from core.layout import DataDir
from retrieval.config import EmbedderConfig, IndexDevice, SearchConfig
from serve.card_budget import GIB, CardBudget, measure_encoder, plan_card, read_model_size
from serve.engine_command import EngineConfig

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What the kernel calls bfloat16 arithmetic, on x86 and on ARM."""
LARGE_CARD_MIB = 70_000
"""From here on the profile of an 80 GB card is taken."""


def detect_profile() -> str:
    """Return the name of the hardware profile that fits this machine: cpu, gpu_24gb or h100."""
    memory_mib = read_card_memory()
    if not memory_mib:
        return "cpu"
    return "h100" if memory_mib[0] >= LARGE_CARD_MIB else "gpu_24gb"


def read_card_memory() -> list[int]:
    """Return the memory of every CUDA card in MiB; none where nvidia-smi is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return []
    return [int(line) for line in answer.stdout.split() if line.isdecimal()]


def fill_engine_config(config: EngineConfig) -> EngineConfig:
    """Return the settings with every open one (None) filled from the profile of this machine.

    A profile that was chosen by name leaves nothing open but what is vLLM's own choice.
    """
    if config.device is not None:
        return _fill_cpu(config)
    profile = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "engine" / f"{detect_profile()}.yaml"))
    values = profile if isinstance(profile, dict) else {}
    open_keys = {str(key): value for key, value in values.items() if getattr(config, str(key)) is None}
    return _fill_cpu(dataclasses.replace(config, **open_keys))


def _fill_cpu(config: EngineConfig) -> EngineConfig:
    """Return the settings with the CPU's own dtype, and `cpu_threads: all` spelt out as vLLM reads it."""
    if config.device != "cpu":
        return config
    dtype = config.dtype or ("bfloat16" if has_bfloat16(CPU_INFO.read_text(encoding="utf-8")) else "float32")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    threads = cores if config.cpu_threads == "all" else config.cpu_threads
    return dataclasses.replace(config, dtype=dtype, cpu_threads=threads)


def share_card(
    engine: EngineConfig,
    model: Path,
    data: DataDir,
    embedder: EmbedderConfig,
    search: SearchConfig,
    measure_vectors: Callable[[], int],
) -> CardBudget | None:
    """Divide the first card between vLLM and what shares it; None without a card whose memory is known.

    Args:
        engine: Its settings, filled up.
        model: The base model's folder.
        data: Where the embedder and the reranker lie.
        embedder: Which, and where it runs.
        search: Which reranker, and where FAISS keeps the vectors.
        measure_vectors: Returns the bytes of those vectors; asked only where they go to the card.

    Raises:
        ConfigError: The model does not fit beside them.
    """
    memory_mib = read_card_memory() if engine.device == "cuda" else []
    if not memory_mib:
        return None
    encoders = {}
    if embedder.device is not Device.cpu:
        encoders["embedder"] = measure_encoder(data.model(embedder.name))
        encoders["reranker"] = measure_encoder(data.model(search.reranker) if search.reranker else None)
    vectors = 0 if search.index_device is IndexDevice.cpu else measure_vectors()
    trainer = int(engine.trainer_gib * GIB)
    return plan_card(memory_mib[0] * 2**20, read_model_size(model), engine, encoders, vectors, trainer)


def has_bfloat16(cpu_info: str) -> bool:
    """Tell whether a CPU multiplies bfloat16 by itself; without it, float32 is several times faster.

    Args:
        cpu_info: Text of /proc/cpuinfo.
    """
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpu_info, re.MULTILINE)
    return any(BFLOAT16_FLAGS & set(line.split()) for line in flags)
