"""The arms of scripts/bench_train.py: Loam as it trains, with techniques left out, and TRL in its usual and best forms.

Runs inside an arm's process. Does not know about rounds; it trains an epoch whenever it is told to.
"""

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose

from core.config import load_config
from core.layout import DataDir

MODEL = "smollm2-135m-instruct"
ROWS_A_STEP = 8
PACK_TOKENS = 2304
"""One pack a step: as many tokens as eight rows of mixed lengths have, so that an epoch has as many steps."""
PROVED_ROWS = 4
PROVED_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to train.

    Attributes:
        overrides: Of conf/train.yaml, for an arm of ours; None for TRL alone.
        options: Of TRL's SFTConfig, for an arm of TRL's.
        attention: Of TRL's arm.
        is_float32: Whether it computes in float32.
    """

    overrides: tuple[str, ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    attention: str = "sdpa"
    is_float32: bool = False


def _tuned(rows: int, **more: Any) -> tuple[tuple[str, Any], ...]:
    """Return TRL's options without recomputation, with rows of like length together."""
    options = {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": ROWS_A_STEP // rows,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": False,
    }
    return tuple({**options, **more}.items())


_APART = ("hardware.share_prefix=false",)
_AUTOGRAD = (*_APART, "hardware.fused_layers=never")
_WHOLE_HEAD = (*_AUTOGRAD, "hardware.fused_head=false")
_NF4 = (*_WHOLE_HEAD, "quant.keep_dequantized=never")
_SHUFFLED = (*_NF4, "trainer.group_by_length=false")

ARMS: dict[str, Arm] = {
    "loam": Arm(()),
    "trl_default": Arm(options=(("per_device_train_batch_size", ROWS_A_STEP),)),
    "trl_float32": Arm(options=(("per_device_train_batch_size", ROWS_A_STEP), ("bf16", False)), is_float32=True),
    "trl_tuned": Arm(options=_tuned(2), attention="eager"),
    "prefix_apart": Arm(_APART),
    "autograd_layers": Arm(_AUTOGRAD),
    "whole_head": Arm(_WHOLE_HEAD),
    "true_nf4": Arm(_NF4),
    "shuffled_rows": Arm(_SHUFFLED),
    "loam_float32": Arm((*_SHUFFLED, "hardware.dtype=float32"), is_float32=True),
    "loam_random": Arm(("trainer.group_by_length=false",)),
    "loam_packed": Arm(("trainer.packing=true", f"trainer.max_length={PACK_TOKENS}", "trainer.batch_size=1")),
    "trl_packed": Arm(options=_tuned(1, packing=True, gradient_accumulation_steps=1)),
    "eager_2": Arm(options=_tuned(2), attention="eager"),
    "eager_4": Arm(options=_tuned(4), attention="eager"),
    "sdpa_2": Arm(options=_tuned(2)),
    "sdpa_4": Arm(options=_tuned(4)),
}
REFERENCE = "trl_float32"
PEERS = ["loam", "trl_tuned", "trl_default"]
FLOAT32 = ["loam", REFERENCE]
LADDER = ["loam", "prefix_apart", "autograd_layers", "whole_head", "true_nf4", "shuffled_rows", "loam_float32"]
"""Each leaves out what the one before it leaves out, and one technique more."""
PACKING = ["loam", "loam_random", "loam_packed", "trl_packed"]
"""Packing puts other rows into a batch, so it is judged by the loss on held-out rows after the same epochs.

Packs mix long and short rows as batches in random order do; batches of like length do not.
"""
TUNING = ["eager_2", "eager_4", "sdpa_2", "sdpa_4"]


def run_worker(job: dict[str, Any], data_dir: DataDir, say: Callable[..., None]) -> None:
    """Build an arm, prove what it computes, train an epoch at each «go» on standard input, and score at the last one.

    Args:
        job: The arm's name, files of its rows and of held-out ones, the number of turns, and where the gradients go.
        data_dir: Where the model is.
        say: Answers the bench.
    """
    import json

    from transformers import TrainerCallback

    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))
    arm = ARMS[job["arm"]]

    class Turns(TrainerCallback):
        """Waits before each epoch and reports its seconds."""

        began = 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            sys.stdin.readline()
            self.began = time.perf_counter()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            seconds = time.perf_counter() - self.began
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that waiting arms fit beside each other
            say(seconds=seconds)

    with tempfile.TemporaryDirectory(prefix="loam-arm-") as folder:
        build = _build_trl if arm.overrides is None else _build_loam
        trainer = build(arm, rows, data_dir, Path(folder), int(job["turns"]))
        trainer.add_callback(Turns())
        loss = _prove(trainer, rows, Path(job["gradients"]))
        say(loss=loss, gradients=job["gradients"])
        trainer.train()
        sys.stdin.readline()  # the other arms may still have a turn
        held_out = json.loads(Path(job["held_out"]).read_text(encoding="utf-8"))
        say(peak_mib=_read_peak_mib(), valid_loss=_score(trainer, held_out))


def _build_loam(arm: Arm, rows: list[dict[str, list[int]]], data_dir: DataDir, folder: Path, turns: int) -> Any:
    """Build our trainer as train/run.py does, on rows that are tokens already."""
    from core.events import EventWriter
    from train import footprint, hardware, memory, model, packing, recorder, trainer
    from train.config import TrainConfig
    from train.encoding import Encoded

    fixed = ["model=smollm2_135m", "hardware=cpu", f"trainer.batch_size={ROWS_A_STEP}", f"trainer.epochs={turns}"]
    # Hydra is at work in this process already, on the same conf/.
    config = load_config(compose("train", overrides=[*fixed, *(arm.overrides or ())]), TrainConfig)
    machine = hardware.find_machine(config.hardware)
    model_folder = data_dir.model(MODEL)
    lengths = [len(row["input_ids"]) for row in rows]
    every = Encoded(examples=rows, tokens=sum(lengths), longest=max(lengths))  # type: ignore[arg-type]
    encoded = packing.pack_rows(every, config, folder)
    shape = footprint.read_shape(model_folder)
    plan = memory.plan_run(
        config, shape, encoded.longest, machine.dtype.itemsize, machine.device.type, machine.memory_bytes
    )
    base = model.load_base(model_folder, config.quant, machine, config.hardware.attention)
    if plan.keep_dequantized:
        model.keep_dequantized(base)
    adapted = model.add_adapter(base, config.lora, MODEL, config.trainer.seed)
    callback = recorder.EventCallback(EventWriter(folder / "events.jsonl"), [], [])
    arguments = trainer.build_arguments(config, machine, plan, folder / "checkpoints", has_valid=False)
    tokenizer = model.load_tokenizer(model_folder)
    return trainer.build_trainer(adapted, tokenizer, encoded, None, arguments, callback, config.hardware)


def _build_trl(arm: Arm, rows: list[dict[str, list[int]]], data_dir: DataDir, folder: Path, turns: int) -> Any:
    """Build TRL's trainer as its documentation shows QLoRA."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    dtype = torch.float32 if arm.is_float32 else torch.bfloat16
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        data_dir.model(MODEL), quantization_config=quantization, dtype=dtype, attn_implementation=arm.attention
    )
    dataset = Dataset.from_list(rows)
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=turns,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        learning_rate=2e-4,
        **{"bf16": True, **dict(arm.options)},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(data_dir.model(MODEL)),
        train_dataset=pack_dataset(dataset, PACK_TOKENS) if arguments.packing else dataset,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    return trainer


def _prove(trainer: Any, rows: list[dict[str, list[int]]], path: Path) -> float:
    """Write the gradients of one micro-batch under a made-up adapter, put the adapter back, and return the loss."""
    import torch
    from safetensors.torch import save_file

    model = trainer.model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name in sorted(trained):
            values = torch.randn(trained[name].shape, generator=generator)
            trained[name].copy_(values * (0.01 if "lora_B" in name else 0.05))
    cut = [{key: values[:PROVED_LENGTH] for key, values in row.items()} for row in rows[:PROVED_ROWS]]
    inputs = trainer.data_collator(cut)
    model.train()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, dict(inputs))
    loss.backward()
    save_file({name: parameter.grad.float().contiguous() for name, parameter in trained.items()}, path)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(before[name])
    return float(loss.detach())


def _score(trainer: Any, rows: list[dict[str, list[int]]]) -> float:
    """Return the mean loss over the learned tokens of held-out rows."""
    import torch

    trainer.model.train()  # without dropout the same as eval(), where bitsandbytes multiplies more coarsely on CPUs
    total, learned = 0.0, 0
    for row in rows:
        inputs = trainer.data_collator([row])
        count = int((inputs["labels"][:, 1:] != -100).sum())
        with torch.no_grad(), trainer.accelerator.autocast():
            total += count * float(trainer.compute_loss(trainer.model, dict(inputs)))
        learned += count
    return total / learned


def _read_peak_mib() -> int:
    """Return the most memory that this process ever had, in MiB (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
