"""Sweeps: each job of a Hydra multirun is a run of its own, in a process of its own, with a folder of its own.

    python train/run.py -m lora.rank=8,16 trainer.learning_rate=1e-4,2e-4 run_id=rank data.train=chats.jsonl
    python train/run.py -m hydra/launcher=slurm lora.rank=8,16 run_id=rank data.train=chats.jsonl

The jobs are named run_id-0, run_id-1 and so on. One that fails does not end the others. At the end a table compares
them. Does not know what a run does; it reads what the run wrote.
"""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from core.events import read_events
from core.layout import DataDir, write_json
from core.manifest import ADAPTER_MANIFEST
from train.launch import SCRIPT

logger = logging.getLogger(__name__)

OUTCOME = "outcome.json"


def is_sweep() -> bool:
    """Whether Hydra runs this as one job of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def run_job(run_id: str | None, data_dir: Path, *, is_resumed: bool) -> None:
    """Run one job of a sweep as `python train/run.py` with the job's own values, and note how it ended.

    Args:
        run_id: Of the sweep, or None.
        data_dir: The data directory.
        is_resumed: Whether jobs that have finished before are passed over.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    name = name_job(run_id or Path(hydra.sweep.dir).name, int(hydra.job.num))
    values = [value for value in hydra.overrides.task if not value.startswith("run_id=")]
    run_folder = DataDir(data_dir).run(name)
    outcome = {"run_id": name, "values": [value for value in values if _is_swept(value, hydra)]}
    if is_resumed and (run_folder / "adapter" / ADAPTER_MANIFEST).is_file():
        logger.info("%s has finished before", name)
        code = 0
    else:
        logger.info("job %d: run_id=%s %s", hydra.job.num, name, " ".join(outcome["values"]))
        code = run_child([sys.executable, str(SCRIPT), *values, f"run_id={name}"])
    write_json(folder / OUTCOME, {**outcome, "code": code, **read_result(run_folder)})


def name_job(run_id: str, number: int) -> str:
    """Return the run id of one job: no two jobs of a sweep share a folder."""
    return f"{run_id}-{number}"


def _is_swept(value: str, hydra: Any) -> bool:
    """Whether a job's value is one of several; without the sweep's own list, every value is shown."""
    sweep = Path(hydra.sweep.dir) / "multirun.yaml"
    return not sweep.is_file() or value not in _read_fixed(sweep)


def _read_fixed(path: Path) -> set[str]:
    from omegaconf import OmegaConf

    return set(OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") or [])


def run_child(command: list[str]) -> int:
    """Run a command to its end and return its exit code; a signal goes on to it, and its end is waited for.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and the command has ended.
    """
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has sent it Ctrl-C too; it saves a checkpoint
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        sys.exit(128 + signal.SIGTERM)
    return code


def read_result(run_folder: Path) -> dict[str, Any]:
    """Return the losses, steps and seconds of a run that ended well, else nothing."""
    done: dict[str, Any] = {}
    for event in read_events(run_folder / "events.jsonl"):
        if event["type"] == "done":
            done = {key: event.get(key) for key in ("steps", "loss_last", "eval_loss", "seconds")}
    return done


class SweepTable(Callback):
    """Prints how the jobs of a sweep compare; Hydra calls it once they have all ended, wherever they ran."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: A job failed.
        """
        paths = Path(config.hydra.sweep.dir).glob(f"*/{OUTCOME}")
        outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths, key=_job_number)]
        if outcomes:
            sys.stdout.write(render_table(outcomes) + "\n")
        if any(outcome["code"] for outcome in outcomes):
            sys.exit(1)


def _job_number(path: Path) -> int:
    return int(path.parent.name) if path.parent.name.isdigit() else -1


def render_table(outcomes: list[dict[str, Any]]) -> str:
    """Return the jobs as a Markdown table, the best first: by held-out loss, else by the last training loss."""

    def order(outcome: dict[str, Any]) -> tuple[bool, float]:
        loss = outcome.get("eval_loss") if outcome.get("eval_loss") is not None else outcome.get("loss_last")
        return loss is None, loss if loss is not None else 0.0

    lines = ["| run | values | steps | training loss | held-out loss | seconds |", "|---|---|---|---|---|---|"]
    for outcome in sorted(outcomes, key=order):
        cells = [f"{outcome[key]:.4f}" if outcome.get(key) is not None else "" for key in ("loss_last", "eval_loss")]
        seconds = f"{outcome['seconds']:.0f}" if outcome.get("seconds") is not None else ""
        ended = str(outcome.get("steps", "")) if not outcome["code"] else f"failed ({outcome['code']})"
        row = [outcome["run_id"], " ".join(outcome["values"]), ended, *cells, seconds]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
