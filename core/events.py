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

Every event also has `type` and `time` (seconds since 1970). Does not know who trains or why.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import describe_os_error

EVENT_TYPES = ("step", "eval", "sample", "checkpoint", "log", "done", "error")


class EventWriter:
    """Appends events to a file and flushes each to disk, so that a kill loses at most the line being written."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending; an unfinished last line of a killed run is cut off first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_unfinished_line(path)
        self._path, self._file = path, path.open("ab", buffering=0)

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
        line = json.dumps({"type": event_type, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        before = self._file.seek(0, os.SEEK_END)
        try:
            self._write_all((line + "\n").encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(before)  # half a line would spoil the next one
            raise describe_os_error(error, f"write {self._path}") from error

    def _write_all(self, content: bytes) -> None:
        """Write every byte: a nearly full disk takes some, and says so only when asked for the rest."""
        while content:
            content = content[self._file.write(content) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

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
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _cut_unfinished_line(path: Path) -> None:
    """Truncate a file after its last newline, so that the next event starts on a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
