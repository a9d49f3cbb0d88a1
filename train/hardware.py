"""What this machine is: resolves every `auto` of the hardware group to a device, a dtype and threads.

Imports torch, so it is loaded after the configuration was checked. Does not know how much memory a model takes;
memory.py does.
"""

import logging
import os
from dataclasses import dataclass

import psutil
import torch

from core.config import Device
from core.errors import ConfigError
from train.config import Dtype, HardwareConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run uses.

    Attributes:
        device: `cpu`, or `cuda:<index>` of this process's card.
        name: The processor's or card's own name.
        dtype: What matrix products run in.
        memory_bytes: Free memory of the device.
        threads: CPU threads of this process.
    """

    device: torch.device
    name: str
    dtype: torch.dtype
    memory_bytes: int
    threads: int

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"hardware: {self.name} ({self.device}), {str(self.dtype).removeprefix('torch.')}, {self.threads} threads"
        )


def find_machine(config: HardwareConfig) -> Machine:
    """Resolve the hardware group on this machine and set the number of CPU threads.

    Raises:
        ConfigError: A CUDA card is wanted and there is none.
    """
    device = _find_device(config.device)
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return Machine(
            device,
            torch.cuda.get_device_name(device),
            _find_dtype(config.dtype, device),
            free_bytes,
            torch.get_num_threads(),
        )
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(threads)
    free_bytes = psutil.virtual_memory().available // config.processes  # each has its share
    name = str(torch.cpu.get_capabilities().get("cpu_name", "CPU"))
    return Machine(device, name, _find_dtype(config.dtype, device), free_bytes, threads)


def _find_device(wanted: Device) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if wanted is Device.cpu or (wanted is Device.auto and not has_cuda):
        return torch.device("cpu")
    if not has_cuda:
        raise ConfigError(
            "hardware.device: wanted a CUDA card, torch sees none. Use hardware=cpu, or check `nvidia-smi` and that "
            "`make setup` installed the CUDA set.",
            param="hardware.device",
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _find_dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    if wanted is not Dtype.auto:
        return torch.float32 if wanted is Dtype.float32 else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if has_bfloat16_arithmetic() else torch.float32


def has_bfloat16_arithmetic() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; where it does not, float32 is three times as fast."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
