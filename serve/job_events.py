"""What a job's training run says of itself, read from its events.jsonl: events, figures by step, how far it is.

Nothing is copied into the database, so that there is one account of a run. Does not know who asks.
"""

import csv
import io
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.events import read_events

RESULT_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""OpenAI's columns of a job's result file."""
SPEED_STEPS = 20
"""Steps behind by which the time of those ahead is told."""


def shape_events(job_id: str, messages: Iterable[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return what happened to a job as OpenAI's events, the newest first.

    Args:
        job_id: The job; its events' ids begin with it, and never change.
        messages: What the gateway said (serve.jobs.read_messages).
        path: The run's events.jsonl; it need not exist.
    """
    prefix = job_id.replace("ftjob", "ftevent", 1)
    found: list[tuple[float, int, int, str, str, str, str, dict[str, Any] | None]] = [
        (
            one["created_at"],
            0,
            one["number"],
            f"{prefix}-g{one['number']}",
            one["level"],
            one["message"],
            "message",
            None,
        )
        for one in messages
    ]
    for line, event in enumerate(read_events(path)):
        described = describe_event(event)
        if described is not None:
            message, kind, data = described
            level = "error" if event["type"] == "error" else "info"
            found.append((event["time"], 1, line, f"{prefix}-t{line}", level, message, kind, data))
    found.sort(key=lambda one: one[:3], reverse=True)
    return [
        {
            "id": event_id,
            "object": "fine_tuning.job.event",
            "created_at": int(created),
            "level": level,
            "message": message,
            "type": kind,
            "data": data or {},
        }
        for created, _, _, event_id, level, message, kind, data in found
    ]


def describe_event(event: dict[str, Any]) -> tuple[str, str, dict[str, Any] | None] | None:
    """Return message, type and data of a training event as OpenAI's; None for one that is the operator's alone."""
    kind = event["type"]
    if kind == "step":
        figures = {"step": event["step"], "train_loss": _finite(event["loss"])}
        figures |= {"learning_rate": event["learning_rate"], "tokens": event["tokens"]}
        figures["tokens_per_s"] = _finite(event["tokens_per_s"])
        if event.get("accuracy") is not None:
            figures["train_accuracy"] = _finite(event["accuracy"])
        return f"Step {event['step']}: training loss={event['loss']:.4f}", "metrics", figures
    if kind == "eval":
        figures = {"step": event["step"], "full_valid_loss": _finite(event["loss"])}
        figures["full_valid_mean_token_accuracy"] = _finite(event["token_accuracy"])
        return f"Step {event['step']}: full validation loss={event['loss']:.4f}", "metrics", figures
    if kind == "sample":
        sample = {name: event[name] for name in ("step", "index", "prompt", "answer")}
        return f"Step {event['step']}: answer to prompt {event['index'] + 1}", "message", sample
    words = {
        "checkpoint": f"Checkpoint saved at step {event.get('step')}",
        "log": str(event.get("message")),
        "done": f"Training has ended after {event.get('steps')} steps",
        "error": f"Training was interrupted ({event.get('code')})",
    }
    return (words[kind], "message", None) if kind in words else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(slots=True)
class Figures:
    """A run's figures by step; of a step that a resumed run did twice, the later ones.

    Attributes:
        steps: `step` events.
        evaluations: `eval` events.
        saved_at: Time of each step's checkpoint.
    """

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    saved_at: dict[int, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """Read them from a run's events.jsonl."""
        figures = cls()
        for event in read_events(path):
            figures.add(event)
        return figures

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        if event["type"] == "step":
            self.steps[event["step"]] = event
        elif event["type"] == "eval":
            self.evaluations[event["step"]] = event
        elif event["type"] == "checkpoint":
            self.saved_at[event["step"]] = event["time"]

    def shape_metrics(self, step: int) -> dict[str, Any]:
        """Return what is known of a step, under the names that OpenAI gives a checkpoint's metrics."""
        trained, held_out = self.steps.get(step, {}), self.evaluations.get(step, {})
        loss, accuracy = _finite(held_out.get("loss")), _finite(held_out.get("token_accuracy"))
        return {
            "step": step,
            "train_loss": _finite(trained.get("loss")),
            "train_mean_token_accuracy": _finite(trained.get("accuracy")),
            "valid_loss": loss,
            "valid_mean_token_accuracy": accuracy,
            "full_valid_loss": loss,
            "full_valid_mean_token_accuracy": accuracy,
        }

    def write_results(self) -> bytes:
        """Return the figures as CSV with OpenAI's columns, a row a step."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(RESULT_COLUMNS)
        for step in sorted({*self.steps, *self.evaluations} - {0}):
            metrics = self.shape_metrics(step)
            names = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
            writer.writerow(["" if metrics[name] is None else metrics[name] for name in names])
        return text.getvalue().encode()


@dataclass(slots=True)
class Progress:
    """How far a running job is.

    Attributes:
        total_steps: How many it will have, as far as can be told before.
        step: Steps behind it.
        tokens: Tokens read.
        timed: Time of the last steps.
    """

    total_steps: int
    step: int = 0
    tokens: int = 0
    timed: list[float] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        if event["type"] == "step":
            self.step, self.tokens = event["step"], event["tokens"]
            self.timed = [*self.timed[-SPEED_STEPS:], event["time"]]

    def estimate_finish(self) -> int | None:
        """Return when the last step should be done, Unix seconds; None before the third step."""
        if len(self.timed) < 3:
            return None
        step_s = (self.timed[-1] - self.timed[0]) / (len(self.timed) - 1)
        left = max(0, self.total_steps - self.step)
        return int(max(time.time(), self.timed[-1] + step_s * left))
