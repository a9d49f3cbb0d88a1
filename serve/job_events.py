"""What a job's training run says of itself, read from its events.jsonl: events, figures by step, how far it is.

Nothing is copied into the database, so that there is one account of a run. Does not know who asks.
"""

import csv
import heapq
import io
import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from core.errors import NotFound
from core.events import find_events_since, read_event_at, read_events, read_events_back
from serve.jobs import find_message_time, read_messages

RESULT_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""OpenAI's columns of a job's result file."""
MAX_NUMBER = 2**63 - 1
"""Above every number that the database gives."""
SPEED_STEPS = 20
"""Steps behind by which the time of those ahead is told."""

Key = tuple[float, int, int]
"""What events are ordered by: time; the gateway's before the trainer's; number of the message, or place in the file."""


def read_event_page(
    engine: Engine, job_id: str, path: Path, *, after: str | None, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return one page of what happened to a job as OpenAI's events, the newest first, and whether more follow.

    No more than the page is read of what the gateway said and of the run's file. An event's id is the job's with the
    number of the gateway's message, or with the event's place in the file, which never change.

    Args:
        engine: The database.
        job_id: The job.
        path: The run's events.jsonl; it need not exist.
        after: Id of the last event of the page before; None: from the newest.
        limit: Most events of the page.

    Raises:
        NotFound: The job has no event of the id `after`.
    """
    before, end = (None, None) if after is None else _find_place(engine, job_id, path, after)
    messages = read_messages(engine, job_id, limit=limit + 1, before=before)
    found = heapq.merge(_shape_said(job_id, messages), _shape_trained(job_id, path, end), key=_read_key, reverse=True)
    page = [event for _, event in itertools.islice(found, limit + 1)]
    return page[:limit], len(page) > limit


def _read_key(keyed: tuple[Key, dict[str, Any]]) -> Key:
    return keyed[0]


def _find_place(engine: Engine, job_id: str, path: Path, event_id: str) -> tuple[tuple[float, int], int]:
    """Return what older messages are before, by time and number, and where older events end in the file.

    Raises:
        NotFound: The job has no such event.
    """
    matched = re.fullmatch(rf"{re.escape(_name_events(job_id))}-([gt])(0|[1-9][0-9]{{0,17}})", event_id)
    kind, number = (matched[1], int(matched[2])) if matched else ("", 0)
    if kind == "g" and (said_at := find_message_time(engine, job_id, number)) is not None:
        return (said_at, number), find_events_since(path, said_at)
    if kind == "t" and (event := read_event_at(path, number)) is not None:
        return (event["time"], MAX_NUMBER), number
    raise NotFound(f"after: {event_id!r} is not in this list.", param="after")


def _name_events(job_id: str) -> str:
    """Return what the ids of a job's events begin with."""
    return job_id.replace("ftjob", "ftevent", 1)


def _shape_said(job_id: str, messages: Iterable[dict[str, Any]]) -> Iterator[tuple[Key, dict[str, Any]]]:
    for one in messages:
        event_id = f"{_name_events(job_id)}-g{one['number']}"
        key = (one["created_at"], 0, one["number"])
        yield key, _shape_event(event_id, one["created_at"], one["level"], (one["message"], "message", None))


def _shape_trained(job_id: str, path: Path, end: int | None) -> Iterator[tuple[Key, dict[str, Any]]]:
    for place, event in read_events_back(path, end):
        described = describe_event(event)
        if described is not None:
            event_id, level = f"{_name_events(job_id)}-t{place}", "error" if event["type"] == "error" else "info"
            yield (event["time"], 1, place), _shape_event(event_id, event["time"], level, described)


def _shape_event(
    event_id: str, moment: float, level: str, described: tuple[str, str, dict[str, Any] | None]
) -> dict[str, Any]:
    message, kind, data = described
    return {
        "id": event_id,
        "object": "fine_tuning.job.event",
        "created_at": int(moment),
        "level": level,
        "message": message,
        "type": kind,
        "data": data or {},
    }


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
