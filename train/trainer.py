"""TRL's SFTTrainer, told what Loam's configuration says, with a callback that writes events.jsonl.

TRL owns the loop, the optimizer and the loss; we own what goes in and what is recorded. Ctrl-C and SIGTERM end the run
after the step that is under way. Does not know where the model came from.
"""

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.errors import ConfigError
from core.events import EventWriter
from train.checkpoint import mark_complete
from train.config import TrainConfig, micro_batch_of
from train.data import Encoded
from train.hardware import Machine
from train.head import can_score_trained_tokens, score_trained_tokens
from train.memory import MemoryPlan
from train.model import restore_float32
from train.sampler import LengthGroupedBatches

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Result:
    """What a run came to; the fields of the `done` event.

    Attributes:
        steps: Optimizer steps.
        loss_first: Mean loss a token of the first step.
        loss_last: Of the last.
        tokens: Non-padding tokens that were read.
        tokens_per_s: Of the steps alone, without evaluation and saving.
        seconds: From the first step to the last, everything in it.
        eval_loss: Of the held-out chats at the end, or None.
        eval_token_accuracy: Share of their learned tokens that were the most likely ones, or None.
    """

    steps: int = 0
    loss_first: float = float("nan")
    loss_last: float = float("nan")
    tokens: int = 0
    tokens_per_s: float = 0.0
    seconds: float = 0.0
    eval_loss: float | None = None
    eval_token_accuracy: float | None = None

    @classmethod
    def of_steps(cls, steps: list[dict[str, float]]) -> "Result":
        """Return what the `step` events of a run up to its checkpoint came to; nothing for none."""
        if not steps:
            return cls()
        first, last = steps[0], steps[-1]
        return cls(int(last["step"]), first["loss"], last["loss"], int(last["tokens"]))


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that the step under way ends before the run does; a second one ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; the second time, raise."""
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        logger.warning("%s: ending after this step; once more ends at once", signal.Signals(number).name)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen while the body runs."""
        before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class EventCallback(TrainerCallback):
    """Writes what happens to events.jsonl, marks whole checkpoints, and ends the run when a signal has come."""

    def __init__(self, events: EventWriter, earlier: list[dict[str, float]]) -> None:
        """Keep where to write.

        Args:
            events: The run's event file.
            earlier: The `step` events up to the checkpoint that the run goes on from; empty for a fresh one.
        """
        self.events, self.stop = events, StopSignal()
        self.result = Result.of_steps(earlier)
        self._tokens_at_start = self._tokens_before = self.result.tokens
        self._step_began = self._began = time.perf_counter()
        self._step_seconds = self._total_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the step's clock."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop the step's clock; end the run after a signal."""
        self._step_seconds = time.perf_counter() - self._step_began
        self._total_seconds += self._step_seconds
        if self.stop.received is not None:
            control.should_training_stop = True
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write a step's or an evaluation's figures.

        Raises:
            ConfigError: The loss is no longer a number.
        """
        logs: dict[str, Any] = kwargs["logs"]
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            tokens = self._tokens_at_start + int(logs["num_tokens"])
            rate = (tokens - self._tokens_before) / max(self._step_seconds, 1e-9)
            self._tokens_before = tokens
            self._note_step(state.global_step, float(logs["loss"]), tokens)
            self.events.write(
                "step",
                step=state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
                tokens=tokens,
                tokens_per_s=round(rate, 1),
            )
            logger.info("step %d/%d  loss %.4f  %.0f tokens/s", state.global_step, state.max_steps, logs["loss"], rate)
        elif "eval_loss" in logs:
            self.result.eval_loss = logs["eval_loss"]
            self.result.eval_token_accuracy = logs["eval_mean_token_accuracy"]
            self.events.write(
                "eval", step=state.global_step, loss=logs["eval_loss"], token_accuracy=logs["eval_mean_token_accuracy"]
            )
            logger.info(
                "evaluation: loss %.4f, token accuracy %.3f", logs["eval_loss"], logs["eval_mean_token_accuracy"]
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Mark the checkpoint as whole, once all its files are on disk."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(folder)
            self.events.write("checkpoint", step=state.global_step, path=f"{folder.parent.name}/{folder.name}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Sum up."""
        self.result.seconds = round(time.perf_counter() - self._began, 2)

    def _note_step(self, step: int, loss: float, tokens: int) -> None:
        result = self.result
        if not math.isfinite(loss):
            raise ConfigError(
                f"trainer.learning_rate: the loss of step {step} is {loss}. Lower the learning rate.",
                param="trainer.learning_rate",
            )
        if math.isnan(result.loss_first):
            result.loss_first = loss
        result.loss_last, result.steps, result.tokens = loss, step, tokens
        result.tokens_per_s = round((tokens - self._tokens_at_start) / max(self._total_seconds, 1e-9), 1)


class Trainer(SFTTrainer):
    """TRL's trainer with another order of rows; everything else is TRL's."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Group rows by length where the configuration says so."""
        if self.args.train_sampling_strategy != "group_by_length":
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        dataset: Any = train_dataset or self.train_dataset
        lengths = [len(ids) for ids in dataset["input_ids"]]
        return LengthGroupedBatches(lengths, self.args.train_batch_size, self.args.seed)


def train(trainer: SFTTrainer, callback: EventCallback, checkpoint: Path | None) -> Result:
    """Train and, where there are held-out chats, evaluate at the end.

    Args:
        trainer: From `build_trainer`.
        callback: The one that the trainer was built with.
        checkpoint: Where to go on from, or None.

    Returns:
        What the run came to.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; a checkpoint was written.
        ConfigError: The loss is no longer a number, or the card's memory was too small after all.
    """
    with callback.stop.watch():
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.eval_dataset is not None and callback.stop.received is None:
                trainer.evaluate()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "hardware: the card's memory was not enough after all. What would help: trainer.micro_batch=1, "
                "hardware.gradient_checkpointing=always, or a smaller trainer.max_length.",
                param="trainer.micro_batch",
            ) from error
    if callback.stop.received is not None:
        sys.exit(128 + callback.stop.received)
    return callback.result


def build_trainer(
    model: Any, tokenizer: Any, train: Encoded, valid: Encoded | None, arguments: SFTConfig, callback: EventCallback
) -> SFTTrainer:
    """Build TRL's trainer for a run.

    Args:
        model: The base with its adapter.
        tokenizer: For padding.
        train: What is learned from.
        valid: What is held out, or None.
        arguments: From `build_arguments`.
        callback: Writes the events.

    Returns:
        The trainer, ready for `train()`.
    """
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(valid) if valid else None,
        callbacks=[callback],
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)  # the event callback logs each step
    restore_float32(model)
    base = model.get_base_model()
    if arguments.use_cpu and can_score_trained_tokens(base):
        score_trained_tokens(base)
    return trainer


def to_dataset(encoded: Encoded) -> Dataset:
    """Return examples as TRL wants them."""
    return Dataset.from_dict(
        {
            "input_ids": [example["input_ids"] for example in encoded.examples],
            "labels": [example["labels"] for example in encoded.examples],
        }
    )


def build_arguments(
    config: TrainConfig, machine: Machine, plan: MemoryPlan, output_dir: Path, *, has_valid: bool
) -> SFTConfig:
    """Translate the run's configuration into TRL's.

    bfloat16 is mixed precision: the adapter and its optimizer stay in float32.
    """
    options = config.trainer
    rows = micro_batch_of(config)
    is_bfloat16 = machine.dtype is torch.bfloat16
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=options.batch_size // config.hardware.processes // rows,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule.value,
        warmup_steps=options.warmup,  # below 1: a share of all steps
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        max_length=None,  # data.py has cut the rows already
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        seed=options.seed,
        eval_strategy="steps" if has_valid and options.eval_every else "no",
        eval_steps=options.eval_every,
        prediction_loss_only=True,
        save_strategy="steps" if options.save_every else "no",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=True,
        report_to=options.options.get("report_to", "none"),
        use_cpu=machine.device.type == "cpu",
        ddp_find_unused_parameters=False if config.hardware.processes > 1 else None,
        bf16=is_bfloat16,
        gradient_checkpointing=plan.gradient_checkpointing,
        dataloader_pin_memory=machine.device.type == "cuda",
        **{key: value for key, value in options.options.items() if key != "report_to"},
    )
