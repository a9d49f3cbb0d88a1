"""Whole trainers on the same rows in scripts/bench_gpu.py: Loam's, TRL's as it comes and well tuned, and Unsloth's.

Every arm trains LoRA on the same random weights in bfloat16, on the same rows of mixed lengths, through its trainer's
own loop; non-padding tokens are counted, the first steps are not. Unsloth patches what it imports, so it runs in an
environment of its own, as a program of its own (bench_gpu_unsloth.py).
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts import bench_gpu_waits as waits
from scripts.bench_gpu_models import PACK_TOKENS, RANK, make_base, make_rows
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, synchronize

ROWS_A_STEP = 16
STEPS, WARM_UP = 8, 3
TRL_NEEDS = ("trl", "datasets")


def time_trl(setting: Setting, attention: str = "sdpa", **options: Any) -> float:
    """Return non-padding tokens a second of TRL's trainer.

    Args:
        setting: Where and at which size.
        attention: Of the model's layers, as transformers names it.
        **options: Of its SFTConfig, in place of its defaults.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = make_rows(setting, ROWS_A_STEP * setting.pick(STEPS, WARM_UP + 1))
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=setting.pick(STEPS, WARM_UP + 1),
            max_length=PACK_TOKENS if options.get("packing") else None,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=setting.device.type == "cpu",
            bf16=setting.dtype is torch.bfloat16,
            **options,
        )
        dataset = Dataset.from_list(rows)
        if arguments.packing:
            from trl.data_utils import pack_dataset

            dataset = pack_dataset(dataset, PACK_TOKENS)
        trainer = SFTTrainer(
            model=make_base(setting, attention=attention),
            args=arguments,
            processing_class=make_tokenizer(),
            train_dataset=dataset,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"),
        )
        return time_trainer(trainer, setting)


def make_tokenizer() -> Any:
    """Return a tokenizer that trainers pad with; rows come as token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        eos_token="<end>",  # noqa: S106
    )


def time_trainer(trainer: Any, setting: Setting) -> float:
    """Train and return non-padding tokens a second, the median over the steps after the first ones."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    tokens: list[int] = []
    ends: list[float] = []

    class Watch(TrainerCallback):
        """Notes when each optimizer step has ended."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            synchronize(setting.device)
            ends.append(time.perf_counter())

    collate = trainer.data_collator

    def count(examples: list[Any]) -> Any:
        tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = count
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch())
    trainer.train()
    share = trainer.args.gradient_accumulation_steps  # batches come ahead of their step, in its order
    read = [sum(tokens[step * share : (step + 1) * share]) for step in range(len(ends))]
    return statistics.median(read[step] / (ends[step] - ends[step - 1]) for step in range(WARM_UP, len(ends)))


@contextmanager
def build_loam(setting: Setting, rows: Any, beta: float | None = None) -> Iterator[Any]:
    """Yield Loam's trainer on packed rows or on pairs, as train/run.py builds it.

    Args:
        setting: Where and at which size.
        rows: Token ids and labels; those of full length stay packs of their own. Pairs are chosen, rejected, chosen, …
        beta: Of DPO, on pairs; None for SFT, on packs.
    """
    from core.config import Device
    from core.events import EventWriter
    from scripts.bench_gpu_models import adapt
    from train import hardware, memory, packing, recorder, trainer
    from train.config import (
        Choice,
        Dtype,
        HardwareConfig,
        MethodConfig,
        MethodKind,
        QuantConfig,
        QuantKind,
        TrainConfig,
        TrainerConfig,
        fill_micro_batch,
    )
    from train.encoding import Encoded

    longest = setting.pick(PACK_TOKENS, 96)
    config = TrainConfig(
        quant=QuantConfig(QuantKind.none),
        method=MethodConfig() if beta is None else MethodConfig(MethodKind.dpo, beta),
        trainer=TrainerConfig(
            batch_size=setting.pick(4, 2),
            max_steps=setting.pick(STEPS, WARM_UP + 1),
            packing=beta is None,
            max_length=longest,
        ),
        hardware=HardwareConfig(
            device=Device(setting.device.type),
            dtype=Dtype.bfloat16 if setting.dtype is torch.bfloat16 else Dtype.float32,
            gradient_checkpointing=Choice.never,
            micro_tokens=setting.pick(8192, 192),
        ),
    )
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        every = Encoded(examples=rows, tokens=sum(len(row["input_ids"]) for row in rows), longest=longest)
        packed = packing.pack_rows(every, config, Path(folder))
        fill_micro_batch(config, packed.longest)
        machine = hardware.find_machine(config.hardware)
        plan = memory.MemoryPlan(0, 0, 0, 0, 0, keep_dequantized=False, gradient_checkpointing=False)
        arguments = trainer.build_arguments(config, machine, plan, Path(folder) / "checkpoints", has_valid=False)
        with EventWriter(Path(folder) / "events.jsonl") as events:
            callback = recorder.EventCallback(events, [], [])
            runner = trainer.build_trainer(
                adapt(make_base(setting)), make_tokenizer(), packed, None, arguments, callback, config.hardware
            )
            yield runner


def time_loam(setting: Setting, rows: Any) -> float:
    """Return non-padding tokens a second of Loam's trainer."""
    with build_loam(setting, rows) as trainer:
        return time_trainer(trainer, setting)


def prove_trainer_waits_for_nothing(setting: Setting, beta: float | None = None) -> list[Figure]:
    """Train by Loam's trainer, and refuse whatever waits for the card between a step's begin and its log line.

    Args:
        setting: Where and at which size.
        beta: Of DPO, on pairs; None for SFT, on packs.
    """
    from transformers import TrainerCallback

    forbidden = ExitStack()
    ended: list[int] = []

    class Forbid(TrainerCallback):
        """Forbids waiting from the begin of a step to its end; the loss is read after that."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step >= waits.WARM_UP:
                forbidden.enter_context(waits.forbid_waits(setting.device))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            forbidden.close()
            ended.append(state.global_step)

    rows = make_rows(setting, ROWS_A_STEP * setting.pick(STEPS, WARM_UP + 1) * 4)
    with build_loam(setting, rows, beta) as trainer, waits.name_waits(), forbidden:
        trainer.add_callback(Forbid())
        trainer.train()
    return [Figure("steps that wait for nothing until they are logged", len(ended) - waits.WARM_UP, "steps")]


def measure_loam(setting: Setting) -> list[Figure]:
    """Loam's trainer, on rows of mixed lengths packed and on rows of full length."""
    rows = make_rows(setting, ROWS_A_STEP * setting.pick(STEPS, WARM_UP + 1) * 4)
    longest = setting.pick(PACK_TOKENS, 96)
    full = [
        {key: (row[key] * longest)[:longest] for key in row} for row in rows[: 4 * setting.pick(STEPS, WARM_UP + 1)]
    ]
    return [
        Figure("non-padding tokens, packed", time_loam(setting, rows), "tokens/s"),
        Figure("tokens, full rows", time_loam(setting, full), "tokens/s"),
    ]


def measure_trl_default(setting: Setting) -> list[Figure]:
    """TRL as it comes: recomputation on, rows padded to the longest."""
    speed = time_trl(setting, per_device_train_batch_size=setting.pick(8, 4))
    return [Figure("non-padding tokens", speed, "tokens/s", "Loam at least 2.5 times it")]


def measure_trl_tuned(setting: Setting) -> list[Figure]:
    """TRL well tuned: no recomputation, rows packed without padding, flash-attn where it is installed."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    speed = time_trl(
        setting,
        attention,
        gradient_checkpointing=False,
        packing=True,
        per_device_train_batch_size=setting.pick(4, 2),
        gradient_accumulation_steps=1,
    )
    return [Figure(f"non-padding tokens ({attention})", speed, "tokens/s", "Loam at least 1.2 times it")]


def measure_unsloth(setting: Setting) -> list[Figure]:
    """Unsloth in its own environment, on the same rows packed and on rows of full length."""
    python = Path(setting.options.get("unsloth_python", ""))
    if not python.is_file():
        raise Unavailable(f"no Unsloth: {python} is not there; make an environment for it and say unsloth_python=PATH")
    model = setting.data.model("llama-3.2-3b-instruct")
    if not (model / "config.json").is_file():
        raise Unavailable(f"Unsloth loads a model from a folder: {model} holds none")
    mixed = make_rows(setting, ROWS_A_STEP * STEPS)
    full = [{key: (row[key] * PACK_TOKENS)[:PACK_TOKENS] for key in row} for row in mixed[: 4 * STEPS]]
    speeds = {
        kind: ask_unsloth(python, model, rows, kind == "packed") for kind, rows in (("packed", mixed), ("full", full))
    }
    return [
        Figure("non-padding tokens, packed", speeds["packed"], "tokens/s", "Loam at least equal"),
        Figure("tokens, full rows", speeds["full"], "tokens/s", "Loam at least 1.15 times it"),
    ]


def ask_unsloth(python: Path, model: Path, rows: list[dict[str, list[int]]], is_packed: bool) -> float:
    """Return the tokens a second that Unsloth trains on some rows.

    Raises:
        Unavailable: It failed.
    """
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        job: dict[str, Any] = {"model": str(model), "rows": rows, "folder": folder, "packing": is_packed}
        job |= {"rank": RANK, "length": PACK_TOKENS, "steps": STEPS, "warm_up": WARM_UP}
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        program = Path(__file__).with_name("bench_gpu_unsloth.py")
        answer = subprocess.run([python, program, path], capture_output=True, text=True, check=False, timeout=240)
    if answer.returncode:
        raise Unavailable(f"Unsloth failed: {(answer.stderr.strip().splitlines() or ['?'])[-1][:200]}")
    return float(json.loads(answer.stdout.strip().splitlines()[-1])["tokens_per_s"])


PEER_STEPS = (
    Step("trainer, Loam", measure_loam, needs=TRL_NEEDS),
    Step("no waits, trainer", prove_trainer_waits_for_nothing, needs=TRL_NEEDS),
    Step("no waits, trainer, pairs", partial(prove_trainer_waits_for_nothing, beta=0.1), needs=TRL_NEEDS),
    Step("trainer, TRL defaults", measure_trl_default, needs=TRL_NEEDS),
    Step("trainer, TRL tuned", measure_trl_tuned, needs=TRL_NEEDS),
    Step("trainer, Unsloth", measure_unsloth, card_only=True),
)
