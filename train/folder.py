"""A run's folder: claimed by one process, holding the resolved configuration and the events of what happened.

Does not know what training is; it records how it ended.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from core.errors import Conflict, LoamError
from core.events import EventWriter, read_events
from core.layout import write_file
from train.launch import is_main, rank


@contextmanager
def claim_folder(folder: Path, configuration: dict[str, object]) -> Iterator[None]:
    """Make a run's folder, or take an unfinished one over, and keep other processes out while the body runs.

    Args:
        folder: runs/<run_id>.
        configuration: Written as config.yaml.

    Raises:
        Conflict: Another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not is_main():
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"run_id: another process trains in {folder}. Wait for it, or choose another run_id."
            ) from error
        write_file(folder / "config.yaml", yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True))
        yield


def open_events(folder: Path) -> EventWriter:
    """Open a run's events for writing; of several processes, each but the main one has a file of its own."""
    return EventWriter(folder / ("events.jsonl" if is_main() else f"events.rank{rank()}.jsonl"))


@contextmanager
def record_failure(events: EventWriter) -> Iterator[None]:
    """Write an `error` event when the body ends badly, and let the error go on."""
    try:
        yield
    except LoamError as error:
        events.write("error", message=error.message, code=error.openai_code)
        raise
    except (KeyboardInterrupt, SystemExit):
        events.write("error", message="interrupted", code="interrupted")
        raise
    except BaseException as error:
        events.write("error", message=f"{type(error).__name__}: {error}", code="internal_error")
        raise


def read_steps(folder: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """Return the `step` events of a run in order; where a resumed run did a step twice, the later one.

    Args:
        folder: runs/<run_id>.
        last_step: Leave out what came after it.
    """
    steps = {event["step"]: event for event in read_events(folder / "events.jsonl") if event["type"] == "step"}
    return [steps[step] for step in sorted(steps) if last_step is None or step <= last_step]
