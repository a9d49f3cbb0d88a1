"""Ingestion: files → documents → chunks → embeddings → database, one transaction a batch of whole documents.

    find files → skip what is unchanged → parse in child processes → cut → embed in batches → commit → snapshot

A document is `completed`, with all its chunks, in the transaction that brings it in, and is reported when that is on
disk; killing this at any time loses only what had not been reported. One process at a time ingests into a store, held
by a lock that dies with it. Does not print; it reports through a callback.
"""

import functools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from core.errors import Conflict, ContractError, InvalidFile, LoamError, StorageFull, describe_os_error
from core.failpoints import reach
from core.layout import DataDir, check_name, sha256_file
from core.lock import hold_lock
from retrieval.attributes import fit_attributes
from retrieval.chunking import Chunk, cut_document
from retrieval.config import ChunkingConfig, ChunkingMode, IndexDevice, ParsingConfig
from retrieval.database import open_database
from retrieval.document import Document
from retrieval.documents import KnownDocument, begin_documents, read_documents, read_failures, stamp_documents
from retrieval.embedding import Embedder, embed_passages
from retrieval.erasure import erase_deleted
from retrieval.parsing import ParserPool
from retrieval.seal import hash_chunk
from retrieval.snapshot import StoreIndex, build_index, ensure_snapshot, save_snapshot
from retrieval.source import UNKNOWN_STAMP, FileStamp, SourceFile, list_files
from retrieval.store import (
    DocumentStatus,
    NewChunk,
    NewDocument,
    Store,
    check_embedder,
    commit_documents,
    commit_failure,
    find_store,
    make_store,
    read_chunk_vectors,
)
from retrieval.vectors import ChunkVectors

logger = logging.getLogger(__name__)

RECIPE_VERSION = 6
"""Raised when loaders or chunking change what they make of the same file: documents are then made anew."""
BATCH_CHUNKS = 128
"""Chunks that are embedded together: enough to sort by length, few enough to commit every second or so."""
PARSED_AHEAD = 4
"""Files that a worker may have parsed before they are embedded."""


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
        embedded: Chunks that had to be embedded; the others say what a chunk of the store says.
        seconds: From start to snapshot.
        added: Of the ingested documents, those that are new.
        changed: Of the ingested documents, those that were there in another version.
        renamed: Documents whose file has another name now; nothing else of them changed.
        removed: Documents whose file is gone.
        reused: Chunks that took the vectors of one that says the same.
    """

    store: str
    found: int = 0
    ingested: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0
    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    reused: int = 0


Progress = Callable[[IngestReport], None]
"""Called after each file."""


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    sha256: str
    recipe: str
    stamp: FileStamp


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
    verify: bool = False,
) -> IngestReport:
    """Bring a file or the files of a folder into a store; documents of other files stay (see sync.py).

    Args:
        data: The data directory.
        store_name: Made if it does not exist.
        source: File or folder.
        embedder: It must be the one that made the store's vectors.
        chunking: How documents are cut.
        parsing: What parsing one file may cost.
        progress: Called after each file.
        verify: Read every file, even one whose size, time and inode are those that the store has noted.

    Returns:
        What was done; a file that could not be read is listed, and stops no other.

    Raises:
        NotFound: The source does not exist.
        InputError: The source holds no files.
        Conflict: The store's vectors are of another embedder, or another process is ingesting into it.
        StorageFull: The disk is full; what was reported so far is kept.
    """
    files = list_files(source, data)
    tools = Tools(embedder, chunking, parsing)
    return ingest_files(data, store_name, files, tools, progress=progress, verify=verify)


@dataclass(frozen=True, slots=True)
class Tools:
    """What documents are made with.

    Attributes:
        embedder: It must be the one that made the store's vectors.
        chunking: How documents are cut.
        parsing: What parsing one file may cost.
        language: What a new store's words are stemmed as; None: as LANGUAGE.
    """

    embedder: Embedder
    chunking: ChunkingConfig
    parsing: ParsingConfig
    language: str | None = None


def ingest_files(
    data: DataDir,
    store_name: str,
    files: list[SourceFile],
    tools: Tools,
    *,
    progress: Progress = lambda _: None,
    verify: bool = False,
    must_exist: bool = False,
) -> IngestReport:
    """Bring some files into a store; documents of other files stay.

    Args:
        data: The data directory.
        store_name: The store.
        files: Where each lies, and the name of its document.
        tools: What documents are made with.
        progress: Called after each file.
        verify: Read every file, whatever its stamp.
        must_exist: Whether a store that is not there is an error; else it is made.

    Returns:
        What was done; a file that could not be read is listed, and stops no other.

    Raises:
        NotFound: The store must exist and does not.
        Conflict: The store's vectors are of another embedder, or another process is ingesting into it.
        StorageFull: The disk is full; what was reported so far is kept.
    """
    start = time.monotonic()
    check_name(store_name, "store")
    report = IngestReport(store_name, found=len(files))
    engine = open_database(data.database)
    try:
        with lock_store(data, store_name):
            store = find_store(engine, store_name) if must_exist else None
            if store is None:
                store = make_store(engine, store_name, tools.embedder.identity, tools.language)
            check_embedder(store, tools.embedder.identity)
            reach("store.made")
            run = Ingestion(engine, store, tools.embedder, tools.chunking, tools.parsing, report, progress)
            run.ingest(files, read_documents(engine, store), verify=verify, retry=True)
            ensure_snapshot(engine, data, find_store(engine, store_name))
            erase_deleted(engine, data)
    finally:
        engine.dispose()
    report.seconds = round(time.monotonic() - start, 2)
    return report


def rebuild(data: DataDir, store_name: str) -> StoreIndex:
    """Make a store's index anew from the database, without embedding anything.

    Returns:
        The index, as it was saved.

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
            return index
    finally:
        engine.dispose()


def write_recipe(chunking: ChunkingConfig) -> str:
    """Return everything besides a file's bytes that decides its chunks."""
    return f"{RECIPE_VERSION}:{chunking.mode.value}:{chunking.max_tokens}:{chunking.overlap_tokens}"


def read_recipe(recipe: str) -> ChunkingConfig:
    """Return how a document was cut.

    Raises:
        ContractError: An earlier version cut it, or it was not cut.
    """
    modes = "|".join(mode.value for mode in ChunkingMode)
    found = re.fullmatch(rf"{RECIPE_VERSION}:({modes}):(\d+):(\d+)", recipe)
    if found is None:
        raise ContractError(
            f"documents: wanted chunks of this version, found the recipe {recipe!r}. Ingest the documents again."
        )
    return ChunkingConfig(int(found[2]), int(found[3]), ChunkingMode(found[1]))


def lock_store(data: DataDir, store_name: str) -> AbstractContextManager[None]:
    """Hold the right to change a store; it ends with the block or the process.

    Raises:
        Conflict: Another process holds it; its id is named.
        StorageFull: The lock file cannot be written.
    """

    def explain(holder: str) -> Conflict:
        return Conflict(
            f"store {store_name!r}: process {holder} is changing it. Wait until it is done.", retry_after_s=30
        )

    return hold_lock(data.indexes / f"{store_name}.lock", explain)


class Ingestion:
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
        """Begin; the store's lock must be held."""
        self._engine = engine
        self._store = store
        self._embedder = embedder
        self._chunking = chunking
        self._parsing = parsing
        self._report = report
        self._progress = progress
        self.recipe = write_recipe(chunking)
        limits = f"{parsing.timeout_s:g}:{parsing.memory_mib}:{parsing.max_file_mib}"
        self._recipe_of_failures = f"{self.recipe}:{limits}"  # with more room the file may be read
        self._known: Mapping[str, KnownDocument] = {}
        self._waiting: list[_Cut] = []

    def ingest(self, files: list[SourceFile], known: Mapping[str, KnownDocument], *, verify: bool, retry: bool) -> None:
        """Bring files in.

        Args:
            files: New, changed and unchanged ones.
            known: What the store has, by name.
            verify: Read every file, whatever its stamp.
            retry: Parse files again that could not be read and have not changed; else their failure is told again.
        """
        self._known = known
        begin_documents(self._engine, self._store, {file.name: file.stamp for file in files if file.name not in known})
        reach("documents.begun")
        with closing(self._parse(self._find_changed(files, verify=verify, retry=retry))) as parsed:
            for file, fingerprint, outcome in parsed:
                if isinstance(outcome, Document):
                    chunks = cut_document(outcome, self._chunking, self._embedder.token_starts)
                    self._waiting.append(_Cut(file, fingerprint, outcome, chunks))
                    if sum(len(cut.chunks) for cut in self._waiting) >= BATCH_CHUNKS:
                        self._commit_waiting()
                else:
                    self._fail(file, fingerprint, outcome)
        self._commit_waiting()

    def _find_changed(
        self, files: list[SourceFile], *, verify: bool, retry: bool
    ) -> Iterator[tuple[SourceFile, _Fingerprint]]:
        """Yield the files whose content or recipe is not what the store has."""
        restamped: dict[int, FileStamp] = {}
        for file in files:
            known = self._known.get(file.name)
            if known is not None and not self._is_current(known, retry=retry):
                known = None
            if known is not None and not verify and file.stamp.is_settled and known.stamp == file.stamp:
                self._pass_over(known)
                continue
            if file.stamp.size_bytes > self._parsing.max_file_mib * 2**20:
                limit = f"wanted at most {self._parsing.max_file_mib} MiB (parsing.max_file_mib)"
                error = InvalidFile(f"{limit}, found {file.stamp.size_bytes / 2**20:.0f}.")
                self._fail(file, _Fingerprint("", self.recipe, file.stamp), error)
                continue
            try:
                sha256 = sha256_file(file.path)
            except OSError as error:
                unread = _Fingerprint("", self.recipe, UNKNOWN_STAMP)
                self._fail(file, unread, describe_os_error(error, f"read {file.name}"))
                continue
            if known is not None and known.sha256 == sha256:
                restamped[known.id] = file.stamp
                self._pass_over(known)
            else:
                yield file, _Fingerprint(sha256, self.recipe, file.stamp)
        stamp_documents(self._engine, restamped)

    def _is_current(self, known: KnownDocument, *, retry: bool) -> bool:
        """Tell whether the same bytes would make of a document what the store has."""
        if known.status is DocumentStatus.completed:
            return known.recipe == self.recipe
        if known.status is not DocumentStatus.failed or retry or known.recipe != self._recipe_of_failures:
            return False
        return known.name in self._failures  # else its row is damaged, or has just gone

    def _pass_over(self, known: KnownDocument) -> None:
        """Count a document that stays as it is."""
        if known.status is DocumentStatus.completed:
            self._report.unchanged += 1
        else:
            self._report.failures.append(Failure(known.name, *self._failures[known.name]))
        self._progress(self._report)

    @functools.cached_property
    def _failures(self) -> dict[str, tuple[str, str]]:
        return read_failures(self._engine, self._store)

    def _parse(
        self, files: Iterable[tuple[SourceFile, _Fingerprint]]
    ) -> Generator[tuple[SourceFile, _Fingerprint, Document | LoamError], None, None]:
        """Yield each file's document or the reason why there is none, parsing a few files ahead."""
        limits = self._parsing
        pending: deque[tuple[SourceFile, _Fingerprint, Future[Document]]] = deque()
        with (
            ParserPool(limits.workers, timeout_s=limits.timeout_s, memory_bytes=limits.memory_mib * 2**20) as pool,
            ThreadPoolExecutor(limits.workers, thread_name_prefix="parse") as threads,
        ):
            try:
                for file, fingerprint in files:
                    pending.append((file, fingerprint, threads.submit(pool.parse, file.path, file.name)))
                    if len(pending) > limits.workers * PARSED_AHEAD:
                        yield _settle(*pending.popleft())
                while pending:
                    yield _settle(*pending.popleft())
            finally:
                for _, _, future in pending:
                    future.cancel()  # whoever stops an ingestion waits for no file that has not been begun

    def _fail(self, file: SourceFile, fingerprint: _Fingerprint, error: LoamError) -> None:
        """Record a file that could not be read."""
        if isinstance(error, StorageFull):
            raise error
        size, recipe = file.stamp.size_bytes, self._recipe_of_failures
        empty = NewDocument(file.name, fingerprint.sha256, recipe, size, "", (), fingerprint.stamp)
        is_kept = commit_failure(self._engine, self._store, empty, error)
        reason = error.message + (" The earlier version stays in the store." if is_kept else "")
        self._report.failures.append(Failure(file.name, error.openai_code, reason))
        self._progress(self._report)

    def _commit_waiting(self) -> None:
        """Embed what waits and says something new, in one go, then commit the documents in one transaction."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        passages = {_hash_of(cut, chunk): _passage_of(cut, chunk) for cut in waiting for chunk in cut.chunks}
        vectors = read_chunk_vectors(self._engine, self._store, passages, with_spans=self._embedder.makes_spans)
        new = {key: passage for key, passage in passages.items() if key not in vectors}
        vectors |= zip(new, embed_passages(list(new.values()), self._embedder), strict=True)
        documents = [_make_document(cut, vectors) for cut in waiting]
        reach("documents.embedded")
        commit_documents(self._engine, self._store, documents)
        for document in documents:
            known = self._known.get(document.name)
            if known is not None and known.status is DocumentStatus.completed:
                self._report.changed += 1
            else:
                self._report.added += 1
            self._report.ingested += 1
            self._report.chunks += len(document.chunks)
            self._progress(self._report)
        self._report.embedded += len(new)
        self._report.reused += sum(len(document.chunks) for document in documents) - len(new)


def _settle(
    file: SourceFile, fingerprint: _Fingerprint, future: Future[Document]
) -> tuple[SourceFile, _Fingerprint, Document | LoamError]:
    """Wait for a file's document; a deliberate error becomes the reason."""
    try:
        return file, fingerprint, future.result()
    except LoamError as error:
        return file, fingerprint, error


def _passage_of(cut: _Cut, chunk: Chunk) -> tuple[str | None, str]:
    return chunk.heading, cut.document.text[chunk.start : chunk.end]


def _hash_of(cut: _Cut, chunk: Chunk) -> str:
    return hash_chunk(*_passage_of(cut, chunk))


def _make_document(cut: _Cut, vectors: Mapping[str, ChunkVectors]) -> NewDocument:
    """Join a document's chunks with their vectors."""
    text = cut.document.text
    chunks = tuple(
        NewChunk(
            chunk.start,
            chunk.end,
            chunk.page,
            chunk.heading,
            text[chunk.start : chunk.end],
            vectors[_hash_of(cut, chunk)],
        )
        for chunk in cut.chunks
    )
    mark = cut.fingerprint
    return NewDocument(
        cut.file.name,
        mark.sha256,
        mark.recipe,
        mark.stamp.size_bytes,
        text,
        chunks,
        mark.stamp,
        fit_attributes(cut.document.attributes),
    )
