"""Which machine is this, and which engine settings fit it? Fills what `hardware=auto` leaves open.

The values stand in conf/engine/<profile>.yaml. Asks nvidia-smi and never imports torch, so that it costs nothing.
"""

import dataclasses
import os
import shutil
import subprocess

from omegaconf import OmegaConf

from core.config import CONF_DIR
from serve.engine_command import EngineConfig

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
        return _name_threads(config)
    profile = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "engine" / f"{detect_profile()}.yaml"))
    values = profile if isinstance(profile, dict) else {}
    open_keys = {str(key): value for key, value in values.items() if getattr(config, str(key)) is None}
    return _name_threads(dataclasses.replace(config, **open_keys))


def _name_threads(config: EngineConfig) -> EngineConfig:
    """Return the settings with `cpu_threads: all` spelt out as vLLM reads it."""
    if config.cpu_threads != "all":
        return config
    cores = sorted(os.sched_getaffinity(0))
    return dataclasses.replace(config, cpu_threads=",".join(map(str, cores)))
