"""Several processes in one machine: train/run.py starts itself again under torch's launcher, which accelerate reads.

The first process checks everything, says what is wrong once, and then becomes the launcher. Of the processes that it
starts, the main one writes; the others only compute. Does not know what is trained.
"""

import os
import sys
from pathlib import Path

from core.errors import ConfigError

LAUNCHED = "LOAM_LAUNCHED_RUN"
"""Set to the run's id in the processes that the launcher starts."""


def is_launched() -> bool:
    """Whether this process was started by the launcher."""
    return LAUNCHED in os.environ


def rank() -> int:
    """Return this process's number among those of the run, from 0."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def launch(run_id: str, processes: int, device: str) -> None:
    """Become the launcher of as many processes; does not return.

    Args:
        run_id: Given to all, so that they agree where it was made up.
        processes: How many.
        device: `cuda` needs a card for each.

    Raises:
        ConfigError: There are fewer cards than processes.
    """
    if device != "cpu":
        import torch  # only to count cards

        cards = torch.cuda.device_count()
        if cards < processes:
            raise ConfigError(
                f"hardware.processes: wanted {processes} cards, found {cards}. Set hardware.processes={cards or 1}.",
                param="hardware.processes",
            )
    script = str(Path(__file__).resolve().parent / "run.py")
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("run_id=")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    os.environ[LAUNCHED] = run_id
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    sys.stdout.flush()
    os.execv(sys.executable, [*command, script, *arguments, f"run_id={run_id}"])  # noqa: S606  (no shell is meant)
