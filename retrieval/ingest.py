"""Ingestion: files → documents → chunks → embeddings → database, one transaction a document.

    find files → skip what is unchanged → parse in child processes → cut → embed in batches → commit → snapshot

A document counts from the moment its transaction is on disk; killing this at any time loses only what had not been
reported. One process at a time ingests into a store, held by a lock that dies with it. Does not print; it reports
through a callback.
"""

import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from core.errors import Conflict, InputError, InvalidFile, LoamError, NotFound, StorageFull, describe_os_error
from core.layout import DataDir, check_name, sha256_file
from retrieval.chunking import Chunk, cut_document
from retrieval.config import ChunkingConfig, IndexDevice, ParsingConfig
from retrieval.database import open_database
from retrieval.document import Document
from retrieval.embedding import Embedder, embed_passages
from retrieval.parsing import ParserPool
from retrieval.snapshot import build_index, open_index, save_snapshot
from retrieval.store import (
    NewChunk,
    NewDocument,
    Store,
    commit_document,
    commit_failure,
    find_store,
    hash_chunk,
    make_store,
    read_embeddings,
    read_fingerprints,
)

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1
"""Raised when loaders or chunking change what they make of the same file: documents are then made anew."""
BATCH_CHUNKS = 128
"""Chunks that are embedded together: enough to sort by length, few enough to commit every second or so."""
PARSED_AHEAD = 4
"""Files that a worker may have parsed before they are embedded."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to ingest.

    Attributes:
        path: Where it lies.
        name: Path below the source, with "/"; the document's name.
    """

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that was not ingested, and why."""

    file: str
    code: str
    reason: str


@dataclass(slots=True)
class IngestReport:
    """What an ingestion did.

    Attributes:
        store: The store's name.
        found: Files in the source.
        ingested: Documents that were new or changed.
        unchanged: Documents that were passed over.
        failures: Files that could not be read.
        chunks: Of the documents ingested now.
        embedded: Chunks that had to be embedded; the others' text had not changed.
        seconds: From start to snapshot.
    """

    store: str
    found: int = 0
    ingested: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0


Progress = Callable[[IngestReport], None]
"""Called after each file."""


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    sha256: str
    recipe: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document that waits for its embeddings."""

    file: SourceFile
    fingerprint: _Fingerprint
    document: Document
    chunks: list[Chunk]


def ingest(
    data: DataDir,
    store_name: str,
    source: Path,
    *,
    embedder: Embedder,
    chunking: ChunkingConfig,
    parsing: ParsingConfig,
    progress: Progress = lambda _: None,
) -> IngestReport:
    """Bring a file or the files of a folder into a store.

    Args:
        data: The data directory.
        store_name: Made if it does not exist.
        source: File or folder.
        embedder: It must be the one that made the store's vectors.
        chunking: How documents are cut.
        parsing: What parsing one file may cost.
        progress: Called after each file.

    Returns:
        What was done; a file that could not be read is listed, and stops no other.

    Raises:
        NotFound: The source does not exist.
        InputError: The source holds no files.
        Conflict: The store's vectors are of another embedder, or another process is ingesting into it.
        StorageFull: The disk is full; what was reported so far is kept.
    """
    start = time.monotonic()
    check_name(store_name, "store")
    files = list_files(source, data)
    report = IngestReport(store_name, found=len(files))
    engine = open_database(data.database)
    try:
        with lock_store(data, store_name):
            store = make_store(engine, store_name, embedder.identity)
            run = _Run(engine, store, embedder, chunking, parsing, report, progress)
            run.ingest(files)
            open_index(engine, data, find_store(engine, store_name), IndexDevice.cpu)  # saves it where it is new
    finally:
        engine.dispose()
    report.seconds = round(time.monotonic() - start, 2)
    return report


def rebuild(data: DataDir, store_name: str) -> int:
    """Make a store's index anew from the database, without embedding anything.

    Returns:
        How many chunks it has.

    Raises:
        NotFound: There is no such store.
        Conflict: Another process is changing it.
    """
    engine = open_database(data.database)
    try:
        find_store(engine, store_name)
        with lock_store(data, store_name):
            index = build_index(engine, find_store(engine, store_name), IndexDevice.cpu)
            save_snapshot(index, data)
            return len(index.numbers)
    finally:
        engine.dispose()


def list_files(source: Path, data: DataDir) -> list[SourceFile]:
    """Return the files of a source in order; hidden ones, links and the data directory itself are left out.

    Raises:
        NotFound: The source does not exist.
        InputError: The source holds no files.
    """
    if source.is_file():
        return [SourceFile(source, source.name)]
    if not source.is_dir():
        raise NotFound(f"source: wanted a file or folder, found nothing at {source}. Check the path.", param="source")
    own = data.root.resolve()
    files = []
    for folder, folders, names in os.walk(source, onerror=_refuse_folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (Path(folder) / name).resolve() != own
        )
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                files.append(SourceFile(path, path.relative_to(source).as_posix()))
    if not files:
        raise InputError(
            f"source: wanted files in {source}, found none (hidden files and links are left out). Check the path.",
            param="source",
        )
    return files


def _refuse_folder(error: OSError) -> None:
    raise describe_os_error(error, "read the source") from error


@contextmanager
def lock_store(data: DataDir, store_name: str) -> Iterator[None]:
    """Hold the right to change a store; it ends with the block or the process.

    Raises:
        Conflict: Another process holds it.
    """
    path = data.indexes / f"{store_name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise describe_os_error(error, f"lock store {store_name!r}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise Conflict(
                f"store {store_name!r}: process {holder} is changing it. Wait until it is done.", retry_after_s=30
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class _Run:
    """One ingestion under way: what waits to be embedded and committed."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        embedder: Embedder,
        chunking: ChunkingConfig,
        parsing: ParsingConfig,
        report: IngestReport,
        progress: Progress,
    ) -> None:
        self._engine = engine
        self._store = store
        self._embedder = embedder
        self._chunking = chunking
        self._parsing = parsing
        self._report = report
        self._progress = progress
        self._recipe = f"{RECIPE_VERSION}:{chunking.max_tokens}:{chunking.overlap_tokens}"
        self._waiting: list[_Cut] = []

    def ingest(self, files: list[SourceFile]) -> None:
        """Bring all files in."""
        known = read_fingerprints(self._engine, self._store)
        changed = self._find_changed(files, known)
        for file, fingerprint, outcome in self._parse(changed):
            if isinstance(outcome, Document):
                chunks = cut_document(outcome, self._chunking, self._embedder.token_starts)
                self._waiting.append(_Cut(file, fingerprint, outcome, chunks))
                if sum(len(cut.chunks) for cut in self._waiting) >= BATCH_CHUNKS:
                    self._commit_waiting()
            else:
                self._fail(file, fingerprint, outcome)
        self._commit_waiting()

    def _find_changed(
        self, files: list[SourceFile], known: dict[str, tuple[str, str]]
    ) -> Iterator[tuple[SourceFile, _Fingerprint]]:
        """Yield the files whose content or recipe is not what the store has."""
        for file in files:
            try:
                size = file.path.stat().st_size
                fingerprint = _Fingerprint(sha256_file(file.path), self._recipe, size)
            except OSError as error:
                self._fail(file, _Fingerprint("", self._recipe, 0), describe_os_error(error, f"read {file.name}"))
                continue
            if known.get(file.name) == (fingerprint.sha256, fingerprint.recipe):
                self._report.unchanged += 1
                self._progress(self._report)
            elif size > self._parsing.max_file_mib * 2**20:
                limit = f"wanted at most {self._parsing.max_file_mib} MiB (parsing.max_file_mib)"
                self._fail(file, fingerprint, InvalidFile(f"{limit}, found {size / 2**20:.0f}."))
            else:
                yield file, fingerprint

    def _parse(
        self, files: Iterable[tuple[SourceFile, _Fingerprint]]
    ) -> Iterator[tuple[SourceFile, _Fingerprint, Document | LoamError]]:
        """Yield each file's document or the reason why there is none, parsing a few files ahead."""
        limits = self._parsing
        pending: deque[tuple[SourceFile, _Fingerprint, Future[Document]]] = deque()
        with (
            ParserPool(limits.workers, timeout_s=limits.timeout_s, memory_bytes=limits.memory_mib * 2**20) as pool,
            ThreadPoolExecutor(limits.workers, thread_name_prefix="parse") as threads,
        ):
            for file, fingerprint in files:
                pending.append((file, fingerprint, threads.submit(pool.parse, file.path)))
                if len(pending) > limits.workers * PARSED_AHEAD:
                    yield _settle(*pending.popleft())
            while pending:
                yield _settle(*pending.popleft())

    def _fail(self, file: SourceFile, fingerprint: _Fingerprint, error: LoamError) -> None:
        """Record a file that could not be read."""
        if isinstance(error, StorageFull):
            raise error
        empty = NewDocument(file.name, fingerprint.sha256, fingerprint.recipe, fingerprint.size_bytes, "", ())
        is_kept = commit_failure(self._engine, self._store, empty, error)
        reason = error.message + (" The earlier version stays in the store." if is_kept else "")
        self._report.failures.append(Failure(file.name, error.openai_code, reason))
        self._progress(self._report)

    def _commit_waiting(self) -> None:
        """Embed what waits in one go, then commit each document by itself."""
        waiting, self._waiting = self._waiting, []
        kept = [read_embeddings(self._engine, self._store, cut.file.name) for cut in waiting]
        new = [
            (chunk.heading, cut.document.text[chunk.start : chunk.end])
            for cut, old in zip(waiting, kept, strict=True)
            for chunk in cut.chunks
            if _hash_of(cut, chunk) not in old
        ]
        vectors = iter(embed_passages(new, self._embedder))
        for cut, old in zip(waiting, kept, strict=True):
            chunks = tuple(_make_chunk(cut, chunk, old, vectors) for chunk in cut.chunks)
            mark = cut.fingerprint
            document = NewDocument(cut.file.name, mark.sha256, mark.recipe, mark.size_bytes, cut.document.text, chunks)
            commit_document(self._engine, self._store, document)
            self._report.ingested += 1
            self._report.chunks += len(chunks)
            self._progress(self._report)
        self._report.embedded += len(new)


def _settle(
    file: SourceFile, fingerprint: _Fingerprint, future: Future[Document]
) -> tuple[SourceFile, _Fingerprint, Document | LoamError]:
    """Wait for a file's document; a deliberate error becomes the reason."""
    try:
        return file, fingerprint, future.result()
    except LoamError as error:
        return file, fingerprint, error


def _hash_of(cut: _Cut, chunk: Chunk) -> str:
    return hash_chunk(chunk.heading, cut.document.text[chunk.start : chunk.end])


def _make_chunk(
    cut: _Cut, chunk: Chunk, old: dict[str, NDArray[np.float32]], new: Iterator[NDArray[np.float32]]
) -> NewChunk:
    """Join a chunk with its vectors: those of an unchanged chunk of the earlier version, or the next new ones."""
    known = old.get(_hash_of(cut, chunk))
    text = cut.document.text[chunk.start : chunk.end]
    embeddings = next(new) if known is None else known
    return NewChunk(chunk.start, chunk.end, chunk.page, chunk.heading, text, embeddings)
