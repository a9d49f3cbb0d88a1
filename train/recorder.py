"""What happens while a run trains, written to events.jsonl by a callback of the Trainer; signals end it in good order.

Does not know what is trained or by which loss, nor what makes a checkpoint whole.
"""

import logging
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from core.errors import ConfigError
from core.events import EventWriter
from train.exactness import BatchFingerprint
from train.interruption import StopSignal
from train.samples import Prompt
from train.validation import Best

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
        eval_loss: Of the held-out rows, of the adapter that is published, or None.
        eval_token_accuracy: Share of their learned tokens that were the most likely ones, or None.
        eval_margin: Of pairs: how much more the better answer is rewarded than the worse one, or None.
        eval_pair_accuracy: Share of the pairs whose better answer is rewarded more, or None.
        best_step: Steps behind the adapter that is published, where that is not the last one, or None.
    """

    steps: int = 0
    loss_first: float = float("nan")
    loss_last: float = float("nan")
    tokens: int = 0
    tokens_per_s: float = 0.0
    seconds: float = 0.0
    eval_loss: float | None = None
    eval_token_accuracy: float | None = None
    eval_margin: float | None = None
    eval_pair_accuracy: float | None = None
    best_step: int | None = None

    @classmethod
    def of_steps(cls, steps: list[dict[str, float]]) -> "Result":
        """Return what the `step` events of a run up to its checkpoint came to; nothing for none."""
        if not steps:
            return cls()
        first, last = steps[0], steps[-1]
        return cls(int(last["step"]), first["loss"], last["loss"], int(last["tokens"]))


class EventCallback(TrainerCallback):
    """Writes what happens to events.jsonl, and ends the run when a signal has come."""

    def __init__(
        self, events: EventWriter, earlier: list[dict[str, float]], evaluations: list[dict[str, Any]] | None = None
    ) -> None:
        """Keep where to write.

        Args:
            events: The run's event file.
            earlier: The `step` events up to the checkpoint that the run goes on from; empty for a fresh one.
            evaluations: The `eval` events so far, later ones too.
        """
        self.events, self.stop, self.batches = events, StopSignal(), BatchFingerprint()
        self.evaluations: dict[int, dict[str, Any]] = {event["step"]: event for event in evaluations or []}
        self.result = Result.of_steps(earlier)
        self._tokens_at_start = self._tokens_before = self.result.tokens
        self._step_began = self._began = time.perf_counter()
        self._step_seconds = self._total_seconds = 0.0
        self._steps_timed = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the step's clock."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """End the run after a signal."""
        if self.stop.is_agreed():
            control.should_training_stop = True
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """End the run, saved, after a signal that came while it evaluated."""
        if self.stop.is_agreed():
            control.should_training_stop = True
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write a step's or an evaluation's figures.

        Raises:
            ConfigError: The loss is no longer a number.
        """
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" in logs:  # only now has a card done what it was told: the loss was read
            self._step_seconds = time.perf_counter() - self._step_began
            self._total_seconds += self._step_seconds
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
                batch=self.batches.take(),
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
                tokens=tokens,
                tokens_per_s=round(rate, 1),
                memory_bytes=measure_peak_memory(),
                **name_rewards(logs, ""),
            )
            logger.info(
                "step %d/%d  loss %.4f  %.0f tokens/s%s",
                state.global_step,
                state.max_steps,
                logs["loss"],
                rate,
                self._describe_rest(state.global_step, state.max_steps),
            )
        elif "eval_loss" in logs:
            self._note_evaluation(state.global_step, logs)

    def _note_evaluation(self, step: int, logs: dict[str, Any]) -> None:
        figures = {
            "loss": logs["eval_loss"],
            "token_accuracy": logs["eval_mean_token_accuracy"],
            **name_rewards(logs, "eval_"),
        }
        self.evaluations[step] = figures
        self._adopt(figures)
        self.events.write("eval", step=step, **figures)
        margin = f", margin {figures['margin']:.4f}" if "margin" in figures else ""
        logger.info("evaluation: loss %.4f, token accuracy %.3f%s", figures["loss"], figures["token_accuracy"], margin)

    def _adopt(self, figures: dict[str, float]) -> None:
        """Take an evaluation's figures as those of the adapter that would be published now."""
        self.result.eval_loss, self.result.eval_token_accuracy = figures["loss"], figures["token_accuracy"]
        self.result.eval_margin, self.result.eval_pair_accuracy = figures.get("margin"), figures.get("accuracy")

    def take_back(self, step: int) -> None:
        """Note that the adapter of an earlier step is the one to publish."""
        self.result.best_step = step
        self._adopt(self.evaluations[step])
        message = f"step {step} was the best on the held-out rows: its adapter is published"
        self.events.write("log", message=message)
        logger.info("%s", message)

    def note_early_end(self, step: int, best: Best) -> None:
        """Note that the held-out loss has not fallen for long enough."""
        message = (
            f"early stopping at step {step}: {best.waited} evaluations without a held-out loss lower by more than "
            f"{best.min_delta:g}; the best was {best.loss:.4f} at step {best.step}"
        )
        self.events.write("log", message=message)
        logger.info("%s", message)

    def note_answer(self, step: int, index: int, prompt: Prompt, answer: str) -> None:
        """Write what the model answers to a fixed prompt."""
        wanted = {} if prompt.wanted is None else {"wanted": prompt.wanted}
        self.events.write("sample", step=step, index=index, prompt=prompt.text, answer=answer, **wanted)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write that a checkpoint is whole; end the run after a signal that came while it was saved."""
        if self.stop.is_agreed():
            control.should_training_stop = True
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.events.write("checkpoint", step=state.global_step, path=f"{folder.parent.name}/{folder.name}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Sum up."""
        self.result.seconds = round(time.perf_counter() - self._began, 2)

    def _describe_rest(self, step: int, steps: int) -> str:
        """Return the time that the steps to come will take at the speed of those behind, once three are."""
        self._steps_timed += 1
        if self._steps_timed < 3 or step >= steps:
            return ""
        minutes, seconds = divmod(round(self._total_seconds / self._steps_timed * (steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return "  " + (f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s") + " left"

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


def name_rewards(logs: dict[str, Any], prefix: str) -> dict[str, float]:
    """Return the figures that only pairs have, under our names; none for chats."""
    if f"{prefix}rewards/margins" not in logs:
        return {}
    return {
        "rewards_chosen": logs[f"{prefix}rewards/chosen"],
        "rewards_rejected": logs[f"{prefix}rewards/rejected"],
        "margin": logs[f"{prefix}rewards/margins"],
        "accuracy": logs[f"{prefix}rewards/accuracies"],
    }


def measure_peak_memory() -> int:
    """Return the most memory that was held so far, in bytes: torch's on a card, else the whole process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_tensorboard(folder: Path, steps_done: int) -> TrainerCallback:
    """Return the Trainer's own writer for TensorBoard, writing below a run's folder.

    Args:
        folder: runs/<run_id>.
        steps_done: Of the checkpoint that the run goes on from; TensorBoard forgets what was written after it.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    path = str(folder / "tensorboard")
    callback = TensorBoardCallback(SummaryWriter(path, purge_step=steps_done + 1 if steps_done else None))
    callback.logging_dir = path  # where it opens a second writer for what is logged after training
    return callback
