"""Making a store hold what a folder holds: what is new comes in, what moved is renamed, what is gone is removed.

    list files ─┬─ same stamp or bytes → nothing
    read rows  ─┤  bytes of a vanished document under another name → renamed, chunks and vectors stay
                ├─ new or changed → as ingest does; a chunk that says what one of the store says keeps its vectors
                └─ document without a file → removed, last, so that its vectors could be used

A source that would leave nothing of a store is refused: it is more often a disk that is not mounted than a wish. Does
not know how documents are parsed or indexed.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import Engine

from core.errors import InputError, NotFound
from core.layout import DataDir, check_name, sha256_file
from core.next_command import write_next_command
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import KnownDocument, delete_documents, delete_store, read_documents, rename_documents
from retrieval.embedding import Embedder
from retrieval.erasure import erase_deleted
from retrieval.ingest import Ingestion, IngestReport, Progress, lock_store
from retrieval.snapshot import ensure_snapshot
from retrieval.source import SourceFile, list_folder
from retrieval.store import DocumentStatus, Store, find_store, make_store


@dataclass(frozen=True, slots=True)
class SyncRules:
    """What a sync looks at, and what it may remove.

    Attributes:
        verify: Read every file, whatever its stamp, and parse those again that could not be read before.
        allow_empty: Go on even where nothing of the store would stay.
        language: What a new store's words are stemmed as; None: as LANGUAGE.
    """

    verify: bool = False
    allow_empty: bool = False
    language: str | None = None


DEFAULT_RULES = SyncRules()


def sync(
    data: DataDir,
    store_name: str,
    source: Path,
    *,
    embedder: Embedder,
    chunking: ChunkingConfig,
    parsing: ParsingConfig,
    progress: Progress = lambda _: None,
    rules: SyncRules = DEFAULT_RULES,
) -> IngestReport:
    """Make a store hold what a folder holds.

    Args:
        data: The data directory.
        store_name: Made if it does not exist.
        source: The folder.
        embedder: It must be the one that made the store's vectors.
        chunking: How documents are cut.
        parsing: What parsing one file may cost.
        progress: Called after each file.
        rules: What to look at, and what may go.

    Returns:
        What was done.

    Raises:
        NotFound: The source does not exist.
        InputError: Nothing of the store would stay, and that is not allowed.
        Conflict: The store's vectors are of another embedder, or another process is changing it.
        StorageFull: The disk is full; what was reported so far is kept.
    """
    start = time.monotonic()
    check_name(store_name, "store")
    files = list_source(source, data, allow_empty=rules.allow_empty)
    report = IngestReport(store_name, found=len(files))
    engine = open_database(data.database)
    try:
        with lock_store(data, store_name):
            store = make_store(engine, store_name, embedder.identity, rules.language)
            known = read_documents(engine, store)
            gone = {name: known[name] for name in known.keys() - {file.name for file in files}}
            run = Ingestion(engine, store, embedder, chunking, parsing, report, progress)
            renames = find_renames(files, known, gone, run.recipe)
            if not rules.allow_empty:
                check_rest(known, gone, renames, source)
            rename_documents(engine, [(document, file.name, file.stamp) for document, file in renames])
            report.renamed = len(renames)
            moved = {document.name for document, _ in renames} | {file.name for _, file in renames}
            run.ingest(
                [file for file in files if file.name not in moved], known, verify=rules.verify, retry=rules.verify
            )
            remove_documents(engine, store, [gone[name] for name in gone.keys() - moved], report)
            ensure_snapshot(engine, data, find_store(engine, store_name))
            erase_deleted(engine, data)
    finally:
        engine.dispose()
    report.seconds = round(time.monotonic() - start, 3)
    return report


def list_source(source: Path, data: DataDir, *, allow_empty: bool) -> list[SourceFile]:
    """Return the files of a folder that a store is to follow.

    Raises:
        NotFound: It does not exist.
        InputError: It is a file, or holds none and that is not allowed.
    """
    if source.is_file():
        raise InputError(
            f"source: wanted a folder, found the file {source}. For one file: action=ingest.", param="source"
        )
    if allow_empty and not source.exists():
        return []
    files = list_folder(source, data)
    if not files and not allow_empty:
        raise InputError(
            f"source: wanted files in {source}, found none. Is the disk mounted? To empty the store: allow_empty=true",
            param="source",
        )
    return files


def find_renames(
    files: list[SourceFile], known: Mapping[str, KnownDocument], gone: Mapping[str, KnownDocument], recipe: str
) -> list[tuple[KnownDocument, SourceFile]]:
    """Find the files that hold, under a new name of the same ending, the bytes of a document whose file is gone.

    Only a new file of the right size is read.
    """
    by_size: dict[tuple[int, str], list[KnownDocument]] = defaultdict(list)
    for name in sorted(gone):
        document = gone[name]
        if document.status is DocumentStatus.completed and document.recipe == recipe:
            by_size[document.stamp.size_bytes, _ending_of(name)].append(document)
    renames = []
    for file in files:
        candidates = by_size.get((file.stamp.size_bytes, _ending_of(file.name)), [])
        if not candidates or file.name in known:
            continue
        try:
            sha256 = sha256_file(file.path)
        except OSError:
            continue  # the ingestion will come to it and tell why
        for document in candidates:
            if document.sha256 == sha256:
                candidates.remove(document)
                renames.append((document, file))
                break
    return renames


def _ending_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def check_rest(
    known: Mapping[str, KnownDocument],
    gone: Mapping[str, KnownDocument],
    renames: list[tuple[KnownDocument, SourceFile]],
    source: Path,
) -> None:
    """Refuse a source that knows none of a store's documents: it is another folder, or a disk that is not there.

    Raises:
        InputError: Every document would be removed.
    """
    completed = {document.name for document in known.values() if document.status is DocumentStatus.completed}
    if completed and completed <= gone.keys() and not renames:
        raise InputError(
            f"source: wanted some of the store's {len(completed)} documents in {source}, found none of them; all would "
            "be removed. Check the path. To go on all the same: allow_empty=true",
            param="source",
        )


def remove_documents(engine: Engine, store: Store, documents: list[KnownDocument], report: IngestReport) -> None:
    """Remove documents from a store and count those that could be found."""
    delete_documents(engine, store, [document.id for document in documents])
    report.removed += sum(document.status is DocumentStatus.completed for document in documents)


def delete(data: DataDir, store_name: str, file: str | None = None) -> int:
    """Remove a document, or a whole store, with everything derived from it.

    Args:
        data: The data directory.
        store_name: The store.
        file: The document's name; None for the store and all that it holds.

    Returns:
        How many documents were removed.

    Raises:
        NotFound: There is no such store or document.
        Conflict: Another process is changing the store.
    """
    engine = open_database(data.database)
    try:
        find_store(engine, store_name)
        with lock_store(data, store_name):
            store = find_store(engine, store_name)
            known = read_documents(engine, store)
            if file is None:
                delete_store(engine, store)
                erase_deleted(engine, data)
                return len(known)
            if file not in known:
                words = ("action=status", f"store={store_name}", "files=true")
                listing = write_next_command("retrieval/run.py", *words, data_dir=data.root)
                raise NotFound(
                    f"file {file!r}: store {store_name!r} has no document of that name. List them: {listing}",
                    param="file",
                )
            delete_documents(engine, store, [known[file].id])
            ensure_snapshot(engine, data, find_store(engine, store_name))
            erase_deleted(engine, data)
            return 1
    finally:
        engine.dispose()
