"""A scripted train/run.py: the same command line, run folder, events, lock, signals and exit codes, no learning.

LOAM_FAKE_TRAINER holds JSON: `step_s` (time of a step), `fault` ([code, message, exit code] after the first step),
`die_at` (kill itself at that step, each time), `memory_bytes` (what an estimate says a run needs).
tests/integration/test_train_kill.py holds it to the real one, tests/unit/train/test_estimate.py its estimates.
"""

import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import Conflict, LoamError
from core.events import EventWriter, read_events
from core.layout import DataDir, sha256_file, write_folder, write_json
from core.lock import hold_lock
from core.manifest import AdapterManifest, BaseIdentity

PROGRAM = (sys.executable, "-m", "tests.fakes.trainer")


def read_options(arguments: list[str]) -> dict[str, str]:
    """Return a command line's keys and values, without Hydra's quotes."""
    pairs = [argument.partition("=") for argument in arguments]
    return {key: value[1:-1] if value[:1] == "'" else value for key, _, value in pairs}


def write_weights(path: Path, rank: int, value: float) -> None:
    """Write one layer's LoRA weights as safetensors."""
    shapes = {"A": (rank, 4), "B": (4, rank)}
    header: dict[str, Any] = {}
    content = b""
    for letter, shape in shapes.items():
        raw = struct.pack(f"<{rank * 4}f", *[value] * rank * 4)
        name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{letter}.weight"
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)


def write_adapter_config(path: Path, base: str, rank: int) -> None:
    """Write PEFT's configuration of a plain adapter."""
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    path.write_text(json.dumps({**config, "target_modules": ["q_proj"], "init_lora_weights": True}))


class Trainer:
    """One run."""

    def __init__(self, options: dict[str, str]) -> None:
        """Read what it is told."""
        self.options = options
        self.script = json.loads(os.environ.get("LOAM_FAKE_TRAINER", "{}"))
        self.data = DataDir(Path(options["paths.data_dir"]))
        self.run = self.data.run(options["run_id"])
        self.rank = int(options.get("lora.rank", "16"))
        self.is_told = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """End after this step."""
        self.is_told = True

    def train(self) -> int:
        """Do the steps that are left, and publish; return the exit code."""
        signal.signal(signal.SIGTERM, self.note)
        self.run.mkdir(parents=True, exist_ok=True)

        def explain(holder: str) -> Conflict:
            with (self.run / "doubles.txt").open("a") as file:
                file.write(f"{holder}\n")
            return Conflict(f"run_id: process {holder} trains in {self.run}.")

        with hold_lock(self.run / ".lock", explain), EventWriter(self.run / "events.jsonl") as events:
            if any(event["type"] == "done" for event in read_events(self.run / "events.jsonl")):
                raise Conflict(f"run_id: {self.run} holds a finished run. Choose another run_id, or remove the folder.")
            if not (self.run / "adapter").is_dir():
                code = self.do_steps(events)
                if code:
                    return code
                self.publish()
            events.write("done", steps=self.steps(), loss_first=3.0, loss_last=1.0, tokens=100 * self.steps(),
                         tokens_per_s=100.0, seconds=1.0)  # fmt: skip
        return 0

    def rows(self) -> int:
        """Return how many rows it learns from."""
        return (self.data.files / Path(self.options["data.train"]).name).read_bytes().count(b"\n")

    def steps(self) -> int:
        """Return how many steps the run has."""
        per_epoch = max(1, -(-self.rows() // int(self.options["trainer.batch_size"])))
        wanted = max(1, round(per_epoch * float(self.options["trainer.epochs"])))
        return min(wanted, int(self.options.get("trainer.max_steps", wanted)))

    def do_steps(self, events: EventWriter) -> int:
        """Go on from the last whole checkpoint; return 0, or the code to end with."""
        whole = [int(path.parent.name.rpartition("-")[2]) for path in self.run.glob("checkpoints/*/COMPLETE.json")]
        if whole:
            events.write("log", message=f"checkpoint-{max(whole)}: whole, going on from here")
        if "data.valid" in self.options and not whole:
            self.answer(events, 0)
        for step in range(max(whole, default=0) + 1, self.steps() + 1):
            time.sleep(self.script.get("step_s", 0.01))
            while step == self.script.get("held_before") and Path(self.script["hold"]).exists() and not self.is_told:
                time.sleep(0.01)
            events.write("step", step=step, loss=3.0 / step, learning_rate=1e-4, grad_norm=1.0, tokens=100 * step,
                         tokens_per_s=100.0, batch="0", memory_bytes=1)  # fmt: skip
            if step == self.script.get("die_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 1 and "fault" in self.script:
                code, message, exit_code = self.script["fault"]
                events.write("error", message=message, code=code)
                return int(exit_code)
            if step % int(self.options["trainer.save_every"]) == 0 or step == self.steps() or self.is_told:
                self.save(step)
                events.write("checkpoint", step=step, path=f"checkpoints/checkpoint-{step}")
            every = int(self.options.get("trainer.eval_every", 0))
            if every and (step % every == 0 or step == self.steps()):
                events.write("eval", step=step, loss=2.0 / step, token_accuracy=0.5)
                self.answer(events, step)
            if self.is_told:
                events.write("error", message="interrupted", code="interrupted")
                return 128 + signal.SIGTERM
        return 0

    def answer(self, events: EventWriter, step: int) -> None:
        """Answer the prompt of the first held-out row, as each evaluation does."""
        events.write("sample", step=step, index=0, prompt="How long?", wanted="45 days", answer=f"said at step {step}")

    def estimate(self) -> dict[str, Any]:
        """Say what the run will take, as train/estimate.py does."""
        rows, free = self.rows(), 8 * 2**30
        needed = int(self.script.get("memory_bytes", 2**30))
        parts = {"base": needed, "adapter": 0, "activations": 0, "logits": 0, "libraries": 0}
        remedies = [] if needed <= free else [{"change": "trainer.max_length=512", "needed_bytes": free // 2}]
        return {
            "hardware": "scripted", "device": "cpu", "rows": rows, "steps": self.steps(), "tokens": 100 * self.steps(),
            "seconds": {"low": 60.0, "high": 120.0}, "fits": needed <= free, "remedies": remedies,
            "memory": {"needed_bytes": needed, "free_bytes": free, "parts": parts},
        }  # fmt: skip

    def save(self, step: int) -> None:
        """Save a checkpoint, its marker last."""
        folder = self.run / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "adapter_model.safetensors"
        write_weights(weights, self.rank, float(step))
        write_json(folder / "COMPLETE.json", {"files": {weights.name: sha256_file(weights)}})
        kept = int(self.options["trainer.keep_checkpoints"])
        for old in sorted(self.run.glob("checkpoints/*"), key=lambda path: int(path.name.rpartition("-")[2]))[:-kept]:
            shutil.rmtree(old)

    def publish(self) -> None:
        """Publish the adapter."""
        base = self.options["model.name"]
        manifest = AdapterManifest(
            self.run.name, BaseIdentity.of(self.data.model(base)), "sft", {"rank": self.rank}, {"kind": "none"}, {},
            int(self.options["trainer.seed"]), None, {"steps": self.steps()}, {}, int(time.time()),
        )  # fmt: skip
        with write_folder(self.run / "adapter") as partial:
            write_weights(partial / "adapter_model.safetensors", self.rank, 1.0)
            write_adapter_config(partial / "adapter_config.json", base, self.rank)
            manifest.write(partial)


def main() -> None:
    """Train as told."""
    try:
        trainer = Trainer(read_options(sys.argv[1:]))
        if trainer.options.get("check_only") == "true":
            _, message, code = trainer.script.get("fault", (None, "", 0))
            sys.stderr.write(f"error: {message}\n" if code else "")
            sys.stdout.write("" if code else json.dumps(trainer.estimate()))
            sys.exit(code)
        code = trainer.train()
    except LoamError as error:
        sys.stderr.write(f"error: {error.message}\n")
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
