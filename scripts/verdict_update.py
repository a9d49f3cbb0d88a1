"""The store of the knowledge update test: the documents as they were, ingested anew, then changed and synced.

Both steps are the command that a person would type, and are timed; their seconds are kept, so that going on later tells
the same. Does not ask anything.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.layout import write_json
from evaluation.updates import Change, apply_changes, copy_documents
from scripts.server_process import PROJECT
from serve.progress import say

if TYPE_CHECKING:
    from scripts.verdict_plan import VerdictConfig


@dataclass(frozen=True, slots=True)
class UpdatedStore:
    """A store whose documents have changed.

    Attributes:
        store: Its name.
        ingest_s: Seconds for all documents as they were.
        sync_s: Seconds to bring in what changed.
    """

    store: str
    ingest_s: float
    sync_s: float


def update_store(config: "VerdictConfig", folder: Path, changes: Sequence[Change]) -> UpdatedStore:
    """Make the store with the changed facts beside the one that is measured, or take the finished one.

    Args:
        config: Names the store and the folder of its documents.
        folder: Of the report; the changed copy lies in it.
        changes: What changes.

    Raises:
        InputError: The documents cannot be ingested; the command's own words stand above.
    """
    record = folder / "updated-store.json"
    if record.is_file():
        return UpdatedStore(**json.loads(record.read_text(encoding="utf-8")))
    store, copy = f"{config.store}-updated", folder / "updated-documents"
    copy_documents(Path(str(config.documents)), copy)
    say(f"ingesting    {store}, as the documents were")
    ingest_s = _run_retrieval(config, "sync", store, copy)
    apply_changes(copy, changes)
    say(f"ingesting    {store}, {len(changes)} facts changed")
    sync_s = _run_retrieval(config, "sync", store, copy)
    updated = UpdatedStore(store, ingest_s, sync_s)
    write_json(record, asdict(updated))
    return updated


def _run_retrieval(config: "VerdictConfig", action: str, store: str, source: Path) -> float:
    """Run retrieval/run.py and return the seconds that its report tells."""
    command = ["retrieval/run.py", f"action={action}", f"store={store}", f"source={source.resolve()}", "output=json"]
    done = subprocess.run(
        [sys.executable, *command, f"paths.data_dir={Path(config.paths.data_dir).resolve()}"],
        cwd=PROJECT, check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"documents: wanted them ingested into {store}, found exit code {done.returncode}; see above.")
    return float(json.loads(done.stdout)["seconds"])
