"""A run's folder: claimed by one process, holding the resolved configuration and the events of what happened.

Does not know what training is; it records how it ended.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from core.errors import Conflict, LoamError, describe_os_error
from core.events import EventWriter, read_events
from core.layout import find_data_dir, make_data_dir, write_file, write_json
from core.lock import hold_lock
from train.launch import is_main, rank

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"


@contextmanager
def claim_folder(folder: Path, configuration: dict[str, object], inputs: dict[str, str]) -> Iterator[None]:
    """Make a run's folder, or take an unfinished one over, and keep other processes out while the body runs.

    Args:
        folder: runs/<run_id>.
        configuration: Written as config.yaml.
        inputs: SHA-256 of what the run reads, by its key; written as inputs.json.

    Raises:
        Conflict: Another process trains in it; its id is named.
    """
    make_data_dir(find_data_dir(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if not is_main():
        yield
        return

    def explain(holder: str) -> Conflict:
        return Conflict(f"run_id: process {holder} trains in {folder}. Wait for it, or choose another run_id.")

    with hold_lock(folder / ".lock", explain):
        _remove_leftovers(folder)
        write_file(folder / "config.yaml", yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True))
        write_json(folder / INPUTS, inputs)
        yield


def read_inputs(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what a run has read, by its key; nothing where that was not noted."""
    path = folder / INPUTS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written under temporary names."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("checkpoints/.*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def open_events(folder: Path) -> EventWriter:
    """Open a run's events for writing; of several processes, each but the main one has a file of its own."""
    return EventWriter(folder / ("events.jsonl" if is_main() else f"events.rank{rank()}.jsonl"))


@contextmanager
def record_failure(events: EventWriter) -> Iterator[None]:
    """Write an `error` event when the body ends badly, and let the error go on."""
    try:
        yield
    except LoamError as error:
        _record_error(events, error.message, error.openai_code)
        raise
    except (KeyboardInterrupt, SystemExit):
        _record_error(events, "interrupted", "interrupted")
        raise
    except OSError as error:
        described = describe_os_error(error, "go on")
        _record_error(events, described.message, described.openai_code)
        raise described from error
    except BaseException as error:
        _record_error(events, f"{type(error).__name__}: {error}", "internal_error")
        raise


def _record_error(events: EventWriter, message: str, code: str) -> None:
    """Write the `error` event where there is room; the error itself goes on either way."""
    try:
        events.write("error", message=message, code=code)
    except LoamError as error:
        logger.warning("the error event is lost: %s", error.message)


def read_steps(folder: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """Return the `step` events of a run in order; where a resumed run did a step twice, the later one.

    Args:
        folder: runs/<run_id>.
        last_step: Leave out what came after it.
    """
    return _read_latest(folder, "step", last_step)


def read_evaluations(folder: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Return the `eval` events of a run in order; where a step was evaluated twice, the later one.

    Args:
        folder: runs/<run_id>.
        last_step: Leave out what came after it.
    """
    return _read_latest(folder, "eval", last_step)


def _read_latest(folder: Path, event_type: str, last_step: int | None) -> list[dict[str, Any]]:
    """Return a run's events of one type in order of their steps, the later one where a step has two."""
    found = {event["step"]: event for event in read_events(folder / "events.jsonl") if event["type"] == event_type}
    return [found[step] for step in sorted(found) if last_step is None or step <= last_step]
