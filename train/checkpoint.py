"""Checkpoints that count only when they are whole: a marker with every file's SHA-256, written last.

The files themselves are the Trainer's (adapter, optimizer, schedule, random states); they hold pickled numbers, which
is why the folder belongs to the run alone and nothing uploaded is ever read this way. Does not know when to save.
"""

import json
import logging
import re
from pathlib import Path

from core.layout import sha256_file, sync_tree, write_json

logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(folder: Path) -> None:
    """Flush a checkpoint to disk and write its marker, the last file of all."""
    (folder / MARKER).unlink(missing_ok=True)
    sync_tree(folder)
    write_json(folder / MARKER, {"files": _hash_all(folder)})


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint has its marker and exactly the files that the marker names."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(files == _hash_all(folder))


def find_last_complete(folder: Path) -> Path | None:
    """Return the latest whole checkpoint of a run, or None; damaged ones are named in the log and passed over.

    Args:
        folder: runs/<run_id>/checkpoints.
    """
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    for path in sorted(found, key=step_of, reverse=True):
        if is_complete(path):
            return path
        logger.warning("%s is not whole: passed over", path)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def _hash_all(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
