"""What makes a run exact, mixed into TRL's trainers: whole checkpoints, the right batches after a resume, no step more.

Transformers' Trainer writes a checkpoint's files and reads them back; this decides when one counts and when an older
one may go, and names the batches of each step by a fingerprint, so that «the same batches» can be checked on any run.
Does not know what is learned.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError
from core.failpoints import reach
from train.checkpoint import MARKER, describe_full_storage, mark_complete, remove_checkpoint, rotate_checkpoints

_MIXERS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)
"""Odd constants of the splitmix64 generator, cut to 63 bits: int64 products wrap around alike on every device."""


class BatchFingerprint:
    """Sums up the token ids that a step has read, on their device and without waiting for it."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._sum: torch.Tensor | None = None

    def add(self, input_ids: torch.Tensor) -> None:
        """Read one micro-batch.

        Args:
            input_ids: Token ids, padding included, (B, T) int64.
        """
        places = torch.arange(1, input_ids.numel() + 1, device=input_ids.device, dtype=torch.int64)
        mixed = (input_ids.reshape(-1) + places * _MIXERS[0]) * _MIXERS[1]
        part = ((mixed ^ (mixed >> 29)) * _MIXERS[2]).sum() + input_ids.shape[-1]
        self._sum = part if self._sum is None else self._sum * _MIXERS[0] + part

    def take(self) -> str:
        """Return the fingerprint of what was read since the last call, 16 hexadecimal digits."""
        value = 0 if self._sum is None else int(self._sum.item())
        self._sum = None
        return f"{value % 2**64:016x}"


class ExactTrainer:
    """Mixin, to stand left of one of TRL's trainers."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    model: Any
    callback_handler: Any
    batches: BatchFingerprint | None = None
    kept_checkpoints: int | None = 2

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, mark it as whole once every process has written, and only then let older ones go."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with describe_full_storage(f"write {folder}"):
                if self.args.should_save and folder.exists():
                    remove_checkpoint(folder)  # one that was passed over
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
                reach("checkpoint.written")
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_complete(folder)
        except BaseException:
            if self.args.should_save and folder.exists() and not (folder / MARKER).is_file():
                remove_checkpoint(folder)  # frees what it took of a full disk
            raise
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(folder, Path(best) if best else None, self.kept_checkpoints)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Count the steps: max_steps ends a run earlier than its epochs, where the Trainer would begin further ones.

        Raises:
            ConfigError: There is no batch to take a step with.
        """
        if not len(dataloader):
            raise ConfigError(
                f"trainer: wanted at least one batch, found {len(dataloader.dataset)} rows that fill none. Leave out "
                "trainer.options.dataloader_drop_last, or take a smaller trainer.batch_size.",
                param="trainer.options",
            )
        counted: tuple[Any, ...] = super().set_initial_training_values(args, dataloader)  # type: ignore[misc]
        if args.max_steps <= math.ceil(args.num_train_epochs * counted[1]):  # updates of an epoch
            return counted
        by_epochs = copy.copy(args)
        by_epochs.max_steps = -1
        return super().set_initial_training_values(by_epochs, dataloader)  # type: ignore[misc,no-any-return]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: a run has its report."""

    def save_unsaved(self) -> None:
        """Write a checkpoint of the last step, unless there is one: training is done, but the run is not."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        is_saved = (folder / MARKER).is_file()
        self.accelerator.wait_for_everyone()
        if not is_saved:
            self._save_checkpoint(self.model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        reach("checkpoint.weights_written")
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        reach("checkpoint.optimizer_written")

    def _run_epoch(self, *values: Any, **named: Any) -> None:
        """Go through an epoch, unless the checkpoint was the last step's; the Trainer would do a step too many."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        set_epoch_below(named["train_dataloader"], named["epoch"])
        super()._run_epoch(*values, **named)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Note what is read, then learn from it."""
        if self.batches is not None:
            self.batches.add(inputs["input_ids"])
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        return loss


def set_epoch_below(loader: Any, epoch: int) -> None:
    """Tell an epoch to every sampler under a data loader.

    Accelerate forwards it two wrappers deep; with several processes and skipped batches there are three, and the run
    would go on with the first epoch's order.
    """
    below = loader
    while below := getattr(below, "batch_sampler", None) or getattr(below, "sampler", None):
        if hasattr(below, "set_epoch"):
            below.set_epoch(epoch)
