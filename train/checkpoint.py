"""Checkpoints that count only when they are whole: a marker with every file's SHA-256, written last.

The files themselves are the Trainer's (adapter, optimizer, schedule, random states); they hold pickled numbers, which
is why the folder belongs to the run alone and nothing uploaded is ever read this way. An older checkpoint goes only
after a newer one is whole. Does not know when to save.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError

from core.errors import StorageFull, describe_os_error
from core.events import EventWriter
from core.failpoints import reach
from core.layout import sha256_file, sync_directory, sync_tree, write_json

logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_NO_ROOM = re.compile(r"inline_container|PytorchStreamWriter|os error (27|28|122)\b")
"""How torch's and safetensors' writers complain: torch gives no cause, safetensors gives the errno."""


def mark_complete(folder: Path) -> None:
    """Flush a checkpoint to disk and write its marker, the last file of all."""
    (folder / MARKER).unlink(missing_ok=True)
    sync_tree(folder)
    sync_directory(folder.parent)
    reach("checkpoint.synced")
    files = _hash_all(folder)
    reach("checkpoint.hashed")
    write_json(folder / MARKER, {"files": files})
    reach("checkpoint.marked")


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint has its marker and exactly the files that the marker names."""
    return find_fault(folder) is None


def find_fault(folder: Path) -> str | None:
    """Return why a checkpoint does not count, or None for a whole one."""
    try:
        wanted: dict[str, str] = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        found = _hash_all(folder)
    except FileNotFoundError:
        return f"it has no {MARKER}, its saving was cut off"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} cannot be read ({error})"
    if wanted == found:
        return None
    different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    return "; ".join(f"{name} {_describe_difference(name, wanted, found)}" for name in different)


def _describe_difference(name: str, wanted: dict[str, str], found: dict[str, str]) -> str:
    if name not in found:
        return "is missing"
    return "has other content than was saved" if name in wanted else "does not belong to it"


def choose_checkpoint(folder: Path, events: EventWriter) -> Path | None:
    """Return the checkpoint that a run goes on from, or None for its start, and record what was passed over and why.

    Args:
        folder: runs/<run_id>/checkpoints.
        events: Of the run; each choice is a `log` event.
    """
    for path in list_checkpoints(folder):
        fault = find_fault(path)
        if fault is None:
            _record(events, f"{path.name}: whole, going on from here")
            return path
        _record(events, f"{path.name}: passed over, {fault}")
    if folder.is_dir():
        _record(events, "no whole checkpoint: starting from the beginning")
    return None


def find_last_complete(folder: Path) -> Path | None:
    """Return the latest whole checkpoint of a run, or None.

    Args:
        folder: runs/<run_id>/checkpoints.
    """
    return next((path for path in list_checkpoints(folder) if is_complete(path)), None)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, whole or not, the latest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=step_of)[::-1]


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate_checkpoints(newest: Path, best: Path | None, kept: int | None) -> None:
    """Remove what a run no longer needs, now that a checkpoint is whole.

    Args:
        newest: The checkpoint that was just marked.
        best: One that is kept whatever its age, or None.
        kept: How many whole ones stay, the newest among them; None keeps all.
    """
    if kept is None:
        return
    older = (path for path in list_checkpoints(newest.parent) if step_of(path) < step_of(newest) and is_complete(path))
    names = {newest.name, *(path.name for path in islice(older, kept - 1)), best.name if best else newest.name}
    for path in list_checkpoints(newest.parent):
        if path.name not in names:
            remove_checkpoint(path)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its marker first, so that a half-removed one does not count."""
    (folder / MARKER).unlink(missing_ok=True)
    sync_directory(folder)
    reach("checkpoint.unmarked")
    shutil.rmtree(folder)


@contextmanager
def describe_full_storage(wanted: str) -> Iterator[None]:
    """Say it in our words when a library's writer in the body finds no room.

    Args:
        wanted: What is being done, as a clause.

    Raises:
        StorageFull: There is no room.
    """
    try:
        yield
    except OSError as error:
        raise describe_os_error(error, wanted) from error
    except (RuntimeError, SafetensorError) as error:
        if not _NO_ROOM.search(str(error)):
            raise
        raise StorageFull(
            f"Could not {wanted}: the disk took no more ({error}). Free some disk space and run the same command again."
        ) from error


def _record(events: EventWriter, message: str) -> None:
    logger.info("%s", message)
    events.write("log", message=message)


def _hash_all(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
