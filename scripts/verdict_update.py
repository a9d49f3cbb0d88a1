"""The store of the knowledge update test: the documents as they were, ingested anew, then changed and synced.

Both steps are the command that a person would type, and are timed; their seconds are kept, so that going on later tells
the same. Does not ask anything.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from core.errors import Conflict, InputError
from core.layout import DataDir, write_json
from evaluation.updates import Change, apply_changes, copy_documents
from retrieval.config import ChunkingConfig
from retrieval.database import open_database, read_transaction
from retrieval.documents import read_documents
from retrieval.settings import StoreSettings, save_settings
from retrieval.store import DocumentStatus, Store, find_store, make_store, select_store
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
        Conflict: The finished one was made with other changes, or of another store; one of that name is not ours; or
            the documents of the measured one are not all cut alike.
        ContractError: They were cut by an earlier version.
    """
    record = folder / "updated-store.json"
    facts = [[one.file, one.find, one.replace] for one in changes]
    if record.is_file():
        return read_updated(record, f"{config.store}-updated", facts)
    data = DataDir(Path(config.paths.data_dir))
    store, copy = f"{config.store}-updated", folder / "updated-documents"
    engine = open_database(data.database)
    try:
        measured = find_store(engine, str(config.store))
        chunking = find_chunking(engine, measured)
        if not copy.is_dir():  # else a run that was stopped has begun it
            check_free(engine, store)
        copy_documents(Path(str(config.documents)), copy)
        make_copy(data, engine, measured, store)
    finally:
        engine.dispose()
    options = list_sync_options(data, measured, chunking, store, copy, config.serve)
    say(f"ingesting    {store}, as the documents were")
    ingest_s = _run_retrieval(options, store)
    apply_changes(copy, changes)
    say(f"ingesting    {store}, {len(changes)} facts changed")
    sync_s = _run_retrieval(options, store)
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
            "To measure everything anew remove the report's folder and that store: "
            f"python retrieval/run.py action=delete store={made['store']}",
            param="changes",
        )
    return UpdatedStore(**made)


def find_chunking(engine: Engine, measured: Store) -> ChunkingConfig:
    """Return how the documents of a store were cut.

    Raises:
        Conflict: Some were cut otherwise than others.
        ContractError: They were cut by an earlier version.
    """
    from retrieval.ingest import read_recipe  # brings the parsers and the indexes, which take a moment to import

    documents = read_documents(engine, measured).values()
    recipes = {document.recipe for document in documents if document.status is DocumentStatus.completed}
    found = [read_recipe(recipe) for recipe in sorted(recipes)] or [ChunkingConfig()]
    if len(found) > 1:
        shown = ", ".join(f"{one.mode.value} {one.max_tokens} {one.overlap_tokens}" for one in found)
        raise Conflict(
            f"changes: wanted a store whose documents are all cut alike, found {shown} in {measured.name}: its changed "
            "copy would differ by more than the facts. Ingest the documents again with one chunking.",
            param="changes",
        )
    return found[0]


def check_free(engine: Engine, store: str) -> None:
    """Refuse to fill a store that was there before: it may be a user's, and whatever is in it would go.

    Raises:
        Conflict: There is one of that name.
    """
    if _is_there(engine, store):
        raise Conflict(
            f"changes: wanted to make the store {store}, found one that this report has not made. If it is not needed: "
            f"python retrieval/run.py action=delete store={store}",
            param="changes",
        )


def make_copy(data: DataDir, engine: Engine, measured: Store, store: str) -> None:
    """Make the store of the changed documents, empty, with the measured one's embedder, language and tuned settings.

    What a run that was stopped has left of it goes: its documents would be passed over, and the time be too short.
    """
    from retrieval.sync import delete  # likewise

    if _is_there(engine, store):
        delete(data, store)
    settings = None if measured.tuned is None else StoreSettings.from_json(measured.tuned)
    save_settings(engine, make_store(engine, store, measured.embedder, measured.language), settings)


def _is_there(engine: Engine, store: str) -> bool:
    with read_transaction(engine) as connection:
        return select_store(connection, store) is not None


def list_sync_options(
    data: DataDir, measured: Store, chunking: ChunkingConfig, store: str, source: Path, serve: Sequence[str] = ()
) -> list[str]:
    """Return what retrieval/run.py is told, so that nothing but the facts differs from the measured store.

    Args:
        data: The data directory.
        measured: The store that is measured.
        chunking: How its documents were cut.
        store: The copy's name.
        source: Folder of the copied documents.
        serve: What the server is told besides; how the embedder is run and what it wants before a text is taken over.
    """
    return [
        "action=sync",
        f"store={store}",
        f"source={quote_override(str(source.resolve()))}",
        f"language={measured.language}",
        *(one for one in serve if re.match(r"embedder[.=]", one)),
        f"embedder.name={quote_override(measured.embedder.name)}",
        f"chunking.mode={chunking.mode.value}",
        f"chunking.max_tokens={chunking.max_tokens}",
        f"chunking.overlap_tokens={chunking.overlap_tokens}",
        "output=json",
        f"paths.data_dir={quote_override(str(data.root.resolve()))}",
    ]


def _run_retrieval(options: Sequence[str], store: str) -> float:
    """Run retrieval/run.py and return the seconds that its report tells."""
    done = subprocess.run(
        [sys.executable, "retrieval/run.py", *options], cwd=PROJECT, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise InputError(f"documents: wanted them ingested into {store}, found exit code {done.returncode}; see above.")
    return float(json.loads(done.stdout)["seconds"])
