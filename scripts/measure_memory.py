"""Measure what training really takes in memory, beside what train/footprint.py estimates, case by case.

    python scripts/measure_memory.py                          # SmolLM2 on the CPU, twelve cases, some ten minutes
    python scripts/measure_memory.py --model NAME --rows 4 --lengths 512,2048

Each case is two optimizer steps in a process of its own, on rows of one length. Counted are anonymous pages (on a card:
what torch allocated) over what the process held once the libraries were imported. Run it again after a change of the
model code, the head or the attention, and put the table into docs/experiments.md.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from core.config import Device, run_command
from core.errors import LoamError
from core.events import EventWriter
from core.layout import DataDir, default_data_dir
from train.config import (
    Choice,
    DataConfig,
    Dtype,
    HardwareConfig,
    ModelConfig,
    QuantConfig,
    QuantKind,
    TrainConfig,
    TrainerConfig,
)

STEPS = 2
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        model: Name of the base model.
        quant: `nf4` or `none`.
        keep: Whether the 4-bit weights' values are kept dequantized.
        dtype: `float32` or `bfloat16`.
        checkpointing: Whether activations are recomputed.
        attention: As transformers names it.
        rows: At once.
        length: Tokens of each row.
    """

    model: str
    quant: str
    keep: bool
    dtype: str
    checkpointing: bool
    attention: str
    rows: int
    length: int

    def to_config(self) -> TrainConfig:
        """Return the configuration of the case's run."""
        keep = Choice.always if self.keep else Choice.never
        recompute = Choice.always if self.checkpointing else Choice.never
        return TrainConfig(
            model=ModelConfig(self.model),
            quant=QuantConfig(QuantKind(self.quant), double=self.quant == "nf4", keep_dequantized=keep),
            data=DataConfig(train="none"),
            trainer=TrainerConfig(max_steps=STEPS, batch_size=self.rows, max_length=self.length),
            hardware=HardwareConfig(
                device=Device.auto,
                dtype=Dtype(self.dtype),
                attention=self.attention,
                gradient_checkpointing=recompute,
                micro_batch=self.rows,
            ),
        )


class PeakWatch:
    """Looks at this process's anonymous pages every few milliseconds while training runs."""

    def __init__(self) -> None:
        self.start_bytes = self.peak_bytes = read_anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.004):
            self.peak_bytes = max(self.peak_bytes, read_anonymous_bytes())

    def stop(self) -> int:
        """Return the bytes by which the process grew at most."""
        self._ended.set()
        self._thread.join()
        return self.peak_bytes - self.start_bytes


def read_anonymous_bytes() -> int:
    """Return this process's resident memory without files that are only mapped."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def measure_case(case: Case, data_dir: Path) -> dict[str, int]:
    """Train two steps in this process.

    Returns:
        `measured` and `estimated` bytes.
    """
    import bitsandbytes  # noqa: F401  (imported first, so that it is no part of what is measured)
    import torch

    from train import footprint, hardware, memory, model, recorder, trainer

    config = case.to_config()
    machine = hardware.find_machine(config.hardware)
    folder = DataDir(data_dir).model(case.model)
    plan = memory.choose_plan(
        footprint.read_shape(folder),
        footprint.Demand.of_config(config, case.length, machine.dtype.itemsize, machine.device.type),
        machine.memory_bytes,
    )
    watch = PeakWatch()
    base = model.load_base(folder, config.quant, machine, config.hardware.attention)
    if plan.keep_dequantized:
        model.keep_dequantized(base)
    adapted = model.add_adapter(base, config.lora, case.model, seed=1)
    rows = make_rows(case.rows * STEPS, case.length, footprint.read_shape(folder).vocabulary)
    with tempfile.TemporaryDirectory() as scratch, EventWriter(Path(scratch) / "events.jsonl") as events:
        callback = recorder.EventCallback(events, [])
        arguments = trainer.build_arguments(config, machine, plan, Path(scratch), has_valid=False)
        sft = trainer.build_trainer(
            adapted, model.load_tokenizer(folder), rows, None, arguments, callback, config.hardware
        )
        trainer.train(sft, callback, None)
    grown = watch.stop()
    measured = torch.cuda.max_memory_allocated() if machine.device.type == "cuda" else grown
    return {"measured": measured, "estimated": plan.total}


def make_rows(count: int, length: int, vocabulary: int) -> Any:
    """Return rows of random tokens, the second half of each learned."""
    import torch

    from train.encoding import Encoded
    from train.tokens import IGNORED, Example

    generator = torch.Generator().manual_seed(7)
    examples: list[Example] = []
    for _ in range(count):
        ids = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        examples.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return Encoded(examples, tokens=count * length, trained_tokens=count * length // 2, longest=length)


def list_cases(model: str, rows: list[int], lengths: list[int]) -> list[Case]:
    """Return the cases of the table: how the base is held, dtype, checkpointing, sizes."""
    bases = [("nf4", False), ("nf4", True), ("none", False)]
    size = (rows[-1], lengths[0])
    cases = [
        Case(model, quant, keep, dtype, False, "sdpa", *size)
        for (quant, keep), dtype in product(bases, ("float32", "bfloat16"))
    ]
    cases += [Case(model, "nf4", False, dtype, True, "sdpa", *size) for dtype in ("float32", "bfloat16")]
    cases += [Case(model, "nf4", True, dtype, False, "eager", *size) for dtype in ("float32", "bfloat16")]
    cases += [
        Case(model, "nf4", True, "bfloat16", False, "sdpa", rows_now, length)
        for rows_now, length in product(rows, lengths)
        if (rows_now, length) != size
    ]
    return cases


def run_case(case: Case, data_dir: Path) -> dict[str, int]:
    """Measure a case in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--data-dir", str(data_dir), "--case"]
    values = {name: getattr(case, name) for name in case.__dataclass_fields__}
    ended = subprocess.run([*command, json.dumps(values)], stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise LoamError(f"{case}: the measurement ended with code {ended.returncode}; see above.")
    result: dict[str, int] = json.loads(ended.stdout.strip().splitlines()[-1])
    return result


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data-dir", type=Path, default=default_data_dir(), help="where models/ is; default: LOAM_DATA_DIR, else data"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name of the base model")
    parser.add_argument("--rows", default="1,4", help="rows at once, several by commas")
    parser.add_argument("--lengths", default="256,512", help="tokens of a row, several by commas")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every case and print the table."""
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(measure_case(Case(**json.loads(arguments.case)), arguments.data_dir)))
        return
    sizes = [[int(number) for number in text.split(",")] for text in (arguments.rows, arguments.lengths)]
    print("| base | dtype | attention | recomputed | rows × tokens | measured MiB | estimated MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for case in list_cases(arguments.model, *sizes):
        found = run_case(case, arguments.data_dir)
        base = "nf4, kept dequantized" if case.keep else case.quant
        print(
            f"| {base} | {case.dtype} | {case.attention} | {'yes' if case.checkpointing else 'no'} "
            f"| {case.rows} × {case.length} | {found['measured'] / MEBIBYTE:,.0f} "
            f"| {found['estimated'] / MEBIBYTE:,.0f} | {found['estimated'] / found['measured']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main)
