"""The file of scripts/bench_gpu.py's figures: read, written whole with the verdict on each goal, and exchanged.

A book holds the figures of one machine, size and commit. Another machine's is put beside it under a name of its own
and comes back when that machine does, so that no card's figures are ever lost to a run without it. Does not know what
was measured.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from core.layout import write_json
from scripts.bench_gpu_goals import judge_goals

logger = logging.getLogger(__name__)


def read_book(path: Path) -> dict[str, Any]:
    """Return what a book holds, an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    empty: dict[str, Any] = {"machine": {}, "parts": {}}
    return empty | found if isinstance(found, dict) else empty


def write_book(path: Path, content: dict[str, Any]) -> None:
    """Write a book whole or not at all, with how its goals stand now."""
    content["goals"] = judge_goals(content)
    write_json(path, content)


def exchange_book(path: Path, identity: list[Any]) -> dict[str, Any]:
    """Return the parts that a machine's own book holds; another's is put aside, and one that was put aside comes back.

    Args:
        path: Where the book lies, or shall lie.
        identity: Of the machine, its size and commit.
    """
    content = read_book(path)
    found = content["machine"].get("identity")
    if found == identity:
        return dict(content["parts"])
    is_unreadable = path.is_file() and not content["parts"]
    if is_unreadable or (found and holds_figures(content)):
        other = path.with_name(f"{path.stem}_unreadable.json") if is_unreadable else name_book(path, found)
        logger.warning("%s: is of %s, wanted one of %s: it lies in %s now", path, found or "?", identity, other.name)
        path.replace(other)
    own = name_book(path, identity)
    if not own.is_file():
        return {}
    own.replace(path)
    return dict(read_book(path)["parts"])


def holds_figures(content: dict[str, Any]) -> bool:
    """Whether anything was measured."""
    return any(step.get("status") == "measured" for steps in content["parts"].values() for step in steps.values())


def name_book(path: Path, identity: list[Any]) -> Path:
    """Return where a machine's book lies while another's is in its place."""
    words = (re.sub(r"[^A-Za-z0-9.-]+", "-", str(one)) for one in identity)
    return path.with_name(f"{path.stem}_{'_'.join(words)}{path.suffix}")
