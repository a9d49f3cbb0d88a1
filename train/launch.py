"""Several processes, in one machine or several: train/run.py starts itself again under torch's launcher.

The first process of a machine checks everything, says what is wrong once, and then becomes the launcher. accelerate and
the Trainer read what the launcher tells its processes. Of these the main one writes; the others only compute. Does not
know what is trained, nor how the weights are shared out.
"""

import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

from core.config import Device
from core.errors import ConfigError
from train.config import HardwareConfig

LAUNCHED = "LOAM_LAUNCHED_RUN"
"""Set to the run's id in the processes that the launcher starts."""
SCRIPT = Path(__file__).resolve().parent / "run.py"
FIRST_PORT = 29500
ALLOCATOR, OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""What torch reads of its allocator's options; the second is the name before torch 2.9, which still holds."""
CARDS = "CUDA_VISIBLE_DEVICES"


def is_launched() -> bool:
    """Whether this process was started by the launcher."""
    return LAUNCHED in os.environ


def rank() -> int:
    """Return this process's number among those of the run, from 0."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def let_segments_grow(device: Device, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have torch's allocator extend its segments on a card, unless somebody has said how it should work.

    Micro-batches differ in their tokens; segments of fixed size are then left half empty, and memory runs out with
    gigabytes reserved. Torch reads it once: call before it is imported.

    Args:
        device: As configured.
        environment: Of this process, handed on to those that it starts.
    """
    if device is not Device.cpu and not {ALLOCATOR, OLD_ALLOCATOR} & environment.keys():
        environment[ALLOCATOR] = "expandable_segments:True"


def show_one_card(hardware: HardwareConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide all cards but the first one from a run of one process: transformers would spread it over all that it sees.

    TRL refuses that once the model is loaded. Call before torch is imported.

    Args:
        hardware: The run's hardware group.
        environment: Of this process; CUDA_VISIBLE_DEVICES says which cards there are, and which comes first.
    """
    if hardware.world == 1 and hardware.device is not Device.cpu:
        environment[CARDS] = environment.get(CARDS, "0").partition(",")[0]


def check_processes(hardware: HardwareConfig, run_id: str | None) -> None:
    """Refuse, before anything starts, what several processes or machines cannot do.

    Args:
        hardware: The run's hardware group.
        run_id: As configured; None where it is still to be made up.

    Raises:
        ConfigError: Cards, the run's name or the meeting point are missing.
    """
    if hardware.nodes > 1 and run_id is None:
        raise ConfigError("run_id: wanted the same name on every machine, found none. Add run_id=NAME.", param="run_id")
    if hardware.nodes > 1:
        find_rendezvous(hardware)
    if hardware.processes > 1 and hardware.device is not Device.cpu:
        import torch  # only to count cards

        cards = torch.cuda.device_count()
        if cards < hardware.processes and not (cards == 0 and hardware.device is Device.auto):
            raise ConfigError(
                f"hardware.processes: wanted {hardware.processes} cards, found {cards}. Set "
                f"hardware.processes={cards or 1}{'' if cards else ' and hardware=cpu'}.",
                param="hardware.processes",
            )


def find_rendezvous(hardware: HardwareConfig) -> tuple[str, int]:
    """Return host and port of the first machine, where the processes of all machines meet.

    Raises:
        ConfigError: It is neither configured nor told by Slurm.
    """
    if hardware.rendezvous is not None:
        host, _, port = hardware.rendezvous.partition(":")
        return host, int(port)
    listed = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", os.environ.get("SLURM_JOB_NODELIST", ""))
    if listed is None:
        raise ConfigError(
            f"hardware.rendezvous: wanted HOST:PORT of the first of {hardware.nodes} machines, found none and no Slurm "
            f"job. Add hardware.rendezvous=HOST:{FIRST_PORT}.",
            param="hardware.rendezvous",
        )
    return listed[1] + (listed[2] or ""), FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % 1000


def build_command(hardware: HardwareConfig, run_id: str, arguments: list[str]) -> list[str]:
    """Return the launcher's command line.

    Args:
        hardware: How many processes and machines.
        run_id: Given to all, so that they agree where it was made up.
        arguments: Of this program.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.processes}"]
    if hardware.nodes == 1:
        command.append("--standalone")
    else:
        host, port = find_rendezvous(hardware)
        command += [f"--nnodes={hardware.nodes}", f"--node-rank={hardware.node_rank}"]
        command += [f"--master-addr={host}", f"--master-port={port}"]
    kept = [argument for argument in arguments if not argument.startswith("run_id=")]
    return [*command, str(SCRIPT), *kept, f"run_id={run_id}"]


def launch(hardware: HardwareConfig, run_id: str) -> None:
    """Become the launcher of a run's processes on this machine; does not return."""
    command = build_command(hardware, run_id, sys.argv[1:])
    os.environ[LAUNCHED] = run_id
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // hardware.processes)))
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606  (no shell is meant)
