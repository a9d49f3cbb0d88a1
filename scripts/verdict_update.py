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

from core.errors import Conflict, InputError
from core.layout import DataDir, write_json
from evaluation.updates import Change, apply_changes, copy_documents
from retrieval.database import open_database
from retrieval.settings import StoreSettings, save_settings
from retrieval.store import Store, find_store
from scripts.server_process import PROJECT, quote_override
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
        NotFound: There is no such store.
        Conflict: The finished one was made with other changes, or of another store.
    """
    record = folder / "updated-store.json"
    facts = [[one.file, one.find, one.replace] for one in changes]
    if record.is_file():
        return read_updated(record, f"{config.store}-updated", facts)
    data = DataDir(Path(config.paths.data_dir))
    measured = read_store(data, str(config.store))
    store, copy = f"{config.store}-updated", folder / "updated-documents"
    copy_documents(Path(str(config.documents)), copy)
    say(f"ingesting    {store}, as the documents were")
    ingest_s = _run_retrieval(list_sync_options(data, measured, store, copy), store)
    copy_settings(data, measured, store)
    apply_changes(copy, changes)
    say(f"ingesting    {store}, {len(changes)} facts changed")
    sync_s = _run_retrieval(list_sync_options(data, measured, store, copy), store)
    updated = UpdatedStore(store, ingest_s, sync_s)
    write_json(record, asdict(updated) | {"facts": facts})
    return updated


def read_updated(record: Path, store: str, facts: Sequence[Sequence[str]]) -> UpdatedStore:
    """Return the finished store that a record tells of.

    Args:
        record: Written when it was finished.
        store: The name that it must have.
        facts: What must have been changed: file, text, text in its place.

    Raises:
        Conflict: It was made with other changes, or of another store.
    """
    made = json.loads(record.read_text(encoding="utf-8"))
    if (made["store"], made.pop("facts", None)) != (store, [list(fact) for fact in facts]):
        raise Conflict(
            f"changes: wanted {store} with these facts changed, found {made['store']} with others in {record}. "
            "Give another name, or remove the report's folder to measure everything anew.",
            param="changes",
        )
    return UpdatedStore(**made)


def read_store(data: DataDir, name: str) -> Store:
    """Return the store that is measured.

    Raises:
        NotFound: There is none of that name.
    """
    engine = open_database(data.database)
    try:
        return find_store(engine, name)
    finally:
        engine.dispose()


def list_sync_options(data: DataDir, measured: Store, store: str, source: Path) -> list[str]:
    """Return what retrieval/run.py is told, so that nothing but the facts differs from the measured store."""
    return [
        "action=sync",
        f"store={store}",
        f"source={quote_override(str(source.resolve()))}",
        f"language={measured.language}",
        f"embedder.name={quote_override(measured.embedder.name)}",
        "output=json",
        f"paths.data_dir={quote_override(str(data.root.resolve()))}",
    ]


def copy_settings(data: DataDir, measured: Store, store: str) -> None:
    """Have a store searched with the settings that the measured one was tuned to."""
    engine = open_database(data.database)
    try:
        settings = None if measured.tuned is None else StoreSettings.from_json(measured.tuned)
        save_settings(engine, find_store(engine, store), settings)
    finally:
        engine.dispose()


def _run_retrieval(options: Sequence[str], store: str) -> float:
    """Run retrieval/run.py and return the seconds that its report tells."""
    done = subprocess.run(
        [sys.executable, "retrieval/run.py", *options], cwd=PROJECT, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise InputError(f"documents: wanted them ingested into {store}, found exit code {done.returncode}; see above.")
    return float(json.loads(done.stdout)["seconds"])
