"""Looking at held-out rows while a run trains: exact means, the best adapter kept, an early end, sample answers.

Mixed into TRL's trainers, which call it at each evaluation. The Trainer averages over rows and batches; here a loss is
a mean over learned tokens (or, for pairs, over pairs), so that it does not depend on how rows were batched. Does not
know where the figures are shown.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.layout import write_folder
from train.checkpoint import describe_full_storage
from train.config import Keep, TrainerConfig
from train.samples import Prompt, answer_prompts
from train.sharding import gather_trained
from train.tokens import IGNORED

logger = logging.getLogger(__name__)

BEST_FILE = "trained.safetensors"


@dataclass(slots=True)
class Best:
    """The best evaluation so far, and for how many evaluations nothing was better.

    Attributes:
        patience: Evaluations without a better loss after which to end; None never ends.
        min_delta: By how much a loss must be lower to count as better for patience.
        loss: The lowest held-out loss.
        step: Where it was.
        waited: Evaluations since the loss fell by min_delta.
    """

    patience: int | None = None
    min_delta: float = 0.0
    loss: float = math.inf
    step: int = 0
    waited: int = 0
    _mark: float = math.inf

    def note(self, step: int, loss: float) -> bool:
        """Take in an evaluation.

        Args:
            step: Optimizer steps behind it; what comes before the first step is no candidate.
            loss: Held-out.

        Returns:
            Whether it is the best so far.
        """
        if step == 0:
            return False
        if loss < self._mark - self.min_delta:
            self._mark, self.waited = loss, 0
        else:
            self.waited += 1
        is_best = loss < self.loss
        if is_best:
            self.loss, self.step = loss, step
        return is_best

    @property
    def is_out_of_patience(self) -> bool:
        """Whether to end."""
        return self.patience is not None and self.waited >= self.patience


@dataclass(slots=True)
class Validation:
    """What to do at each evaluation.

    Attributes:
        best: The best evaluation so far.
        folder: Where the best adapter is kept, or None to keep none.
        prompts: To answer at each evaluation.
        max_tokens: Of an answer.
        stop_token_id: Ends an answer.
        note_answer: Called with (step, index, prompt, answer) on the main process.
        note_early_end: Called with the step and the best evaluation on the main process.
        evaluated_step: Of the last evaluation, or None.
    """

    best: Best
    folder: Path | None
    prompts: list[Prompt]
    max_tokens: int
    stop_token_id: int
    note_answer: Callable[[int, int, Prompt, str], None]
    note_early_end: Callable[[int, Best], None]
    evaluated_step: int | None = None


def plan_validation(
    options: TrainerConfig,
    prompts: list[Prompt],
    stop_token_id: int,
    folder: Path,
    evaluations: list[dict[str, Any]],
    callback: Any,
) -> Validation:
    """Decide what to do at each evaluation of a run.

    Args:
        options: The run's trainer group.
        prompts: To answer each time.
        stop_token_id: Ends an answer.
        folder: Where the best adapter is kept; one may lie there, where a run goes on.
        evaluations: The `eval` events up to the checkpoint that the run goes on from.
        callback: Writes the events.
    """
    best = Best(options.early_stopping, options.min_delta)
    for event in evaluations:
        best.note(event["step"], event["loss"])
    if options.keep is Keep.best:  # kept may be a later one than the checkpoint knows of: it stays the one to beat
        best.loss, best.step = read_saved(folder)
    return Validation(
        best=best,
        folder=folder if options.keep is Keep.best else None,
        prompts=prompts,
        max_tokens=options.sample_tokens,
        stop_token_id=stop_token_id,
        note_answer=callback.note_answer,
        note_early_end=callback.note_early_end,
    )


@dataclass(slots=True)
class HeldOutSums:
    """Figures of an evaluation's batches and what each batch weighs: its learned tokens, or its pairs."""

    losses: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def mean(self, values: list[float]) -> float:
        """Return the weighted mean of a figure that was noted once a batch."""
        total = math.fsum(self.weights)
        return math.fsum(value * weight for value, weight in zip(values, self.weights, strict=True)) / max(total, 1)


class ValidatedTrainer:
    """Mixin, to stand left of one of TRL's trainers."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    model: Any
    processing_class: Any
    is_fsdp_enabled: bool
    validation: Validation | None = None
    _metrics: Any
    _held_out: HeldOutSums | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute a batch's loss; in an evaluation, note it with its weight."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if self._held_out is not None and not self.model.training:
            mine, weight = loss[0] if return_outputs else loss, weigh_batch(inputs)
            both = torch.stack([mine.detach().double() * weight, weight.to(mine.device).double()])
            total, weights = self.accelerator.gather(both[None]).sum(0).tolist()
            self._held_out.losses.append(total / max(weights, 1))
            self._held_out.weights.append(weights)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, then keep the best adapter, answer the prompts and end early where that is wanted."""
        self._held_out = HeldOutSums()
        try:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._held_out = None
        if self.validation is not None:
            self._follow_up(self.validation, metrics["eval_loss"])
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put exact means in the place of the Trainer's."""
        sums = self._held_out
        if sums is not None and sums.weights and "eval_loss" in logs:
            logs["eval_loss"] = sums.mean(sums.losses)
            for key, values in self._metrics["eval"].items():
                if len(values) == len(sums.weights):
                    self._metrics["eval"][key] = [sums.mean(values)]
        super().log(logs, start_time)  # type: ignore[misc]

    def answer_prompts(self) -> None:
        """Answer the fixed prompts with the model as it stands."""
        wanted = self.validation
        if wanted is None or not wanted.prompts or not (self.is_fsdp_enabled or self.args.should_save):
            return
        with self.accelerator.autocast():
            answers = answer_prompts(
                self.model, wanted.prompts, wanted.max_tokens, wanted.stop_token_id, self.processing_class
            )
        if self.args.should_save:
            for index, (prompt, answer) in enumerate(zip(wanted.prompts, answers, strict=True)):
                wanted.note_answer(self.state.global_step, index, prompt, answer)

    def _follow_up(self, wanted: Validation, loss: float) -> None:
        step = self.state.global_step
        wanted.evaluated_step = step
        if wanted.best.note(step, loss) and wanted.folder is not None:
            weights = gather_trained(self.model)
            if self.args.should_save:
                save_trained(weights, wanted.folder, step, loss)
        self.answer_prompts()
        if wanted.best.is_out_of_patience and step < self.state.max_steps and not self.control.should_training_stop:
            self.control.should_training_stop = True
            if self.args.should_save:
                wanted.note_early_end(step, wanted.best)

    def restore_best(self) -> bool:
        """Put the best adapter into the model, where it is not there already; say whether it was another."""
        wanted = self.validation
        if wanted is None or wanted.folder is None or wanted.best.step in (0, self.state.global_step):
            return False
        self.accelerator.wait_for_everyone()
        restore_trained(self.model, wanted.folder)
        return True


def weigh_batch(inputs: dict[str, Any]) -> torch.Tensor:
    """Return what a batch weighs in a mean: its pairs, or the tokens that are learned."""
    if "completion_mask" in inputs:
        return torch.tensor(len(inputs["completion_mask"]) // 2)
    weight: torch.Tensor = (inputs["labels"][:, 1:] != IGNORED).sum()
    return weight


def save_trained(weights: dict[str, torch.Tensor], folder: Path, step: int, loss: float) -> None:
    """Write trained parameters and where they stood, whole or not at all, over the ones before."""
    from safetensors.torch import save_file

    with describe_full_storage(f"write {folder}"), write_folder(folder) as partial:
        save_file(weights, partial / BEST_FILE, metadata={"step": str(step), "loss": repr(loss)})


def read_saved(folder: Path) -> tuple[float, int]:
    """Return the held-out loss and the step of the saved parameters; infinity and 0 where there are none."""
    from safetensors import safe_open

    if not (folder / BEST_FILE).is_file():
        return math.inf, 0
    with safe_open(folder / BEST_FILE, "pt") as file:
        found = file.metadata()
    return float(found["loss"]), int(found["step"])


def restore_trained(model: nn.Module, folder: Path) -> None:
    """Put saved parameters into a model, sharded or not."""
    from safetensors.torch import load_file
    from torch.distributed.tensor import distribute_tensor

    weights = load_file(folder / BEST_FILE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                target: Any = parameter.data
                value: Any = weights[name].to(target.device)
                if hasattr(target, "full_tensor"):
                    value = distribute_tensor(value, target.device_mesh, target.placements)
                target.copy_(value)
