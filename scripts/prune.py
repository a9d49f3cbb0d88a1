"""Free disk: python scripts/prune.py [DATA_DIR] [checkpoints=1] [reports=10] [days=30] [apply=true] [output=json].

Shows what can go and why, and removes it only with apply=true:
- checkpoints of runs that nobody works on: a finished run keeps the newest `checkpoints`, an unfinished one a whole one
  to resume from as well; both only where the run was not touched for `days`;
- snapshots of earlier generations and of stores that are gone (indexes are caches);
- reports beyond the newest `reports` that are older than `days`.
Models, adapters, uploads and the database are never touched. May run beside a gateway and a trainer.
"""

from core.entry import begin_program

begin_program()

import json
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from core.config import run_command
from core.errors import Conflict, NotFound, StorageFull
from core.layout import DataDir, sync_directory
from core.lock import hold_lock
from core.logs import configure_logging
from retrieval.database import open_database
from retrieval.erasure import hold_snapshots
from retrieval.status import list_stores
from retrieval.store import find_store
from scripts.words import parse_words, show_help
from train.checkpoint import find_last_complete, list_checkpoints, remove_checkpoint

DAY_S = 86_400
DEFAULTS = {"checkpoints": 1, "reports": 10, "days": 30}
MOST = 1_000_000
WANTED = {**dict.fromkeys(DEFAULTS, f"N, 0 to {MOST:,}"), "apply": "true|false", "output": "table|json"}


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that can go.

    Attributes:
        path: Where it lies, from the data directory.
        size_bytes: What removing it frees; files that another folder links to are not counted.
        reason: Why nobody needs it.
    """

    path: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays.

    Attributes:
        checkpoints: Newest ones of a finished run.
        reports: Newest ones of all.
        days: How long a run or a report must have been left alone.
    """

    checkpoints: int
    reports: int
    days: int

    @property
    def limit(self) -> float:
        """Return the time before which something counts as left alone, in Unix seconds."""
        return time.time() - self.days * DAY_S


def find_checkpoints(data: DataDir, keep: Keep) -> Iterator[Removal]:
    """Yield the checkpoints that can go, of runs that nobody trains and nobody touched lately."""
    for run in _list_folders(data.runs):
        checkpoints = list_checkpoints(run / "checkpoints")
        touched = max(
            (path.lstat().st_mtime for path in (run / "events.jsonl", *checkpoints) if path.exists()), default=0
        )
        if not checkpoints or touched > keep.limit or not _is_free(run):
            continue
        is_finished = (run / "adapter" / "manifest.json").is_file()
        kept: list[Path | None] = [*checkpoints[: keep.checkpoints]]
        if not is_finished:
            kept.append(find_last_complete(run / "checkpoints"))
        state = "finished" if is_finished else "unfinished, a whole one stays"
        for path in checkpoints:
            if path not in kept:
                yield Removal(str(path.relative_to(data.root)), _weigh(path), f"of a {state} run")


def _is_free(run: Path) -> bool:
    """Whether no trainer holds a run."""
    if not (run / ".lock").is_file():
        return True
    try:
        with hold_lock(run / ".lock", Conflict):
            return True
    except Conflict:
        return False


def find_snapshots(data: DataDir, _: Keep) -> Iterator[Removal]:
    """Yield the snapshots that no search opens any more."""
    if not data.database.is_file():
        return
    try:
        engine = open_database(data.database)
    except StorageFull:
        print("note: the disk is too full to open the database; old indexes are told once it is not", file=sys.stderr)
        return
    try:
        stores = [find_store(engine, status.store) for status in list_stores(engine)]
    finally:
        engine.dispose()
    generations = {str(store.id): store.generation for store in stores}
    for folder in _list_folders(data.indexes):
        if not folder.name.isdigit():
            continue
        current = generations.get(folder.name)
        if current is None:
            yield Removal(str(folder.relative_to(data.root)), _weigh(folder), "of a store that is gone")
            continue
        for snapshot in _list_folders(folder):
            if snapshot.name.isdigit() and int(snapshot.name) < current:
                yield Removal(str(snapshot.relative_to(data.root)), _weigh(snapshot), f"before generation {current}")


def find_reports(data: DataDir, keep: Keep) -> Iterator[Removal]:
    """Yield the reports that are old and not among the newest."""
    entries = [path for path in data.reports.glob("*") if not path.name.startswith(".")]
    entries.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    for path in entries[keep.reports :]:
        if path.lstat().st_mtime < keep.limit:
            yield Removal(str(path.relative_to(data.root)), _weigh(path), f"older than {keep.days} days")


KINDS: tuple[Callable[[DataDir, Keep], Iterator[Removal]], ...] = (find_checkpoints, find_snapshots, find_reports)


def _list_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _weigh(path: Path) -> int:
    files = [path] if path.is_symlink() or path.is_file() else list(path.rglob("*"))
    found = [file.lstat() for file in files]  # of a link itself: what it leads to stays
    return sum(one.st_size for one in found if not stat.S_ISDIR(one.st_mode) and one.st_nlink == 1)


def find_removals(data: DataDir, keep: Keep) -> list[Removal]:
    """Return all that can go, kind by kind.

    Raises:
        NotFound: There is no such data directory.
    """
    if not data.root.is_dir():
        raise NotFound(f"data_dir: wanted a data directory, found none at {data.root}. Check the path.")
    return [removal for kind in KINDS for removal in kind(data, keep)]


def remove(data: DataDir, removal: Removal) -> None:
    """Remove one thing; a half-removed checkpoint does not count as whole, a snapshot goes under its store's lock."""
    path = data.root / removal.path
    kind = removal.path.partition("/")[0]
    if kind == "runs":
        remove_checkpoint(path)
    elif kind == "indexes":
        store = path if path.parent == data.indexes else path.parent
        with hold_snapshots(store, wait=True):
            shutil.rmtree(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    with suppress(FileNotFoundError):
        sync_directory(path.parent)


def parse_arguments(words: list[str]) -> tuple[DataDir, Keep, bool, bool]:
    """Return the data directory, what to keep, whether to remove, and whether to print JSON.

    Raises:
        ConfigError: Words are none of these; all are named.
    """
    data, values = parse_words(words, WANTED, _is_good)
    numbers = {key: int(values.get(key, number)) for key, number in DEFAULTS.items()}
    return data, Keep(**numbers), values.get("apply") == "true", values.get("output") == "json"


def _is_good(key: str, value: str) -> bool:
    if key in DEFAULTS:
        return value.isdecimal() and int(value) <= MOST
    return (key == "apply" and value in ("true", "false")) or (key == "output" and value in ("json", "table"))


def main() -> None:
    """Show what can go, or remove it."""
    show_help(sys.argv[1:], __doc__)
    data, keep, apply, as_json = parse_arguments(sys.argv[1:])
    configure_logging(level="WARNING")
    removals = find_removals(data, keep)
    for removal in removals:
        if apply:
            remove(data, removal)
        if not as_json:  # at once, so that whoever interrupts it sees what is gone
            print(f"{removal.size_bytes / 2**20:10,.1f} MiB  {removal.path}  ({removal.reason})", flush=True)
    size = sum(removal.size_bytes for removal in removals)
    if as_json:
        report = {"data_dir": str(data.root), "is_removed": apply, "size_bytes": size}
        print(json.dumps({**report, "removals": [asdict(removal) for removal in removals]}))
        return
    print(f"{size / 2**20:10,.1f} MiB  {'removed' if apply else 'can go'}: {len(removals)} entries")
    if removals and not apply:
        print(f"next: {shlex.join(['python', 'scripts/prune.py', *sys.argv[1:], 'apply=true'])}")


if __name__ == "__main__":
    run_command(main)
