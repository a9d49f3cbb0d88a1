"""Training events: one JSON object a line, flushed, in `runs/<run_id>/events.jsonl`.

The gateway, the console and the plots all read this one file. Event types and their fields:

    step        step, loss, learning_rate, grad_norm, tokens (non-padding, since the start), tokens_per_s,
                batch (fingerprint of the token ids that were read), memory_bytes (the most so far); of pairs also
                rewards_chosen, rewards_rejected, margin, accuracy
    eval        step, loss, token_accuracy; of pairs also what a step of pairs has
    sample      step, index, prompt, answer, wanted (in the data, or missing): a fixed prompt, answered
    checkpoint  step, path
    log         message
    done        steps, loss_first, loss_last, tokens, tokens_per_s, seconds
    error       message, code

Every event also has `type` and `time` (seconds since 1970, never less than that of the event before, whatever the clock
does). Does not know who trains or why.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.lines import LineWriter, find_line_start, read_lines_back, read_whole_lines

EVENT_TYPES = ("step", "eval", "sample", "checkpoint", "log", "done", "error")


class EventWriter:
    """Appends events to a file and flushes each to disk, so that a kill loses at most the line being written."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending; an unfinished last line of a killed run is cut off first."""
        self._lines = LineWriter(path)
        _, last = next(read_events_back(path), (0, {"time": 0.0}))
        self._last_s = float(last["time"])

    def write(self, event_type: str, **fields: Any) -> None:
        """Append one event.

        Args:
            event_type: One of EVENT_TYPES.
            **fields: The event's fields, JSON values.

        Raises:
            StorageFull: The disk is full; the file is as it was before.
        """
        if event_type not in EVENT_TYPES:
            raise ValueError(f"event type: wanted one of {', '.join(EVENT_TYPES)}; found {event_type!r}")
        self._last_s = max(self._last_s, round(time.time(), 3))
        event = {"type": event_type, "time": self._last_s, **fields}
        self._lines.write(json.dumps(event, ensure_ascii=False))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, whatever happened."""
        self.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file in order; a half-written last line is left out.

    Args:
        path: events.jsonl; a missing file has no events.
    """
    for line in read_whole_lines(path):
        yield json.loads(line)


def read_events_back(path: Path, end: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the events of a file with their places, the last first; reads no more of it than is taken.

    Args:
        path: events.jsonl; a missing file has no events.
        end: Only events before this place, in bytes, at which a line begins; None: all.
    """
    for place, line in read_lines_back(path, end):
        yield place, json.loads(line)


def read_event_at(path: Path, place: int) -> dict[str, Any] | None:
    """Return the event that begins at a place of a file, in bytes; None where none does."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        end = find_line_start(file, file.seek(0, os.SEEK_END))
        if place >= end or find_line_start(file, place) != place:
            return None
        file.seek(place)
        event: dict[str, Any] = json.loads(file.readline())
        return event


def find_events_since(path: Path, moment: float) -> int:
    """Return the place of the first event that is not before a moment, found by halving the file.

    Args:
        path: events.jsonl; a missing file has no events.
        moment: Seconds since 1970.

    Returns:
        In bytes; the end of the last event where all are before it.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        low, high = 0, find_line_start(file, file.seek(0, os.SEEK_END))
        while low < high:
            start = find_line_start(file, (low + high) // 2)
            file.seek(start)
            if json.loads(file.readline())["time"] < moment:
                low = file.tell()
            else:
                high = start
    return low


def read_events_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the events behind a place in a file, and the place to go on from.

    Args:
        path: events.jsonl; a missing file has no events.
        offset: In bytes, at the beginning of a line: 0, or what the last call returned.
    """
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)
