"""The worker that makes documents of attached files: one thread, one group of files at a time, through retrieval.

    oldest rows in progress of one store ──▶ retrieval.ingest ──▶ completed | failed
                                                               └─▶ removed again, if they were called off meanwhile

The queue is the table, so that a gateway that starts again goes on where the last one was killed. A store that cannot
be changed now is passed over for a while, and the files of others go on. Parsing happens in retrieval's child
processes, never in the event loop. Also removes what is left of deleted and expired things. Does not know HTTP.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, bindparam, text

from core.errors import Conflict, LoamError, NotFound, StorageFull
from core.failpoints import reach
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ChunkingMode, ParsingConfig
from retrieval.database import read_transaction, truncate_log, write_transaction
from retrieval.departures import forget_departures
from retrieval.documents import delete_documents, put_attributes, read_documents
from retrieval.embedding import Embedder
from retrieval.erasure import erase_deleted
from retrieval.ingest import Tools, ingest_files
from retrieval.source import FileStamp, SourceFile
from retrieval.store import Store, select_store
from retrieval.uploads import list_expired_uploads, remove_upload
from serve.attached_files import detach_everywhere
from serve.attachment_seals import DAMAGED, is_file_whole, keep_files_sealed, select_files
from serve.boundary import hide_folder
from serve.responses import remove_old_responses
from serve.vector_stores import list_expired

logger = logging.getLogger(__name__)

GROUP_FILES = 8
"""Files that are ingested together: their chunks fill the embedder's batches, and one index is saved for all."""
IDLE_S = 30.0
"""How long the worker sleeps when nobody wakes it; also how soon expired things go."""
SECOND_NS = 10**9
RETRY_S = 5.0
"""How long it waits when another process is changing the store or the database, or the disk is full."""


@dataclass(frozen=True, slots=True)
class _HeldUp:
    """Why a store's files are passed over, and until when (`time.monotonic`)."""

    reason: str
    until_s: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row of the queue."""

    number: int
    file_id: str
    document: str
    created_at: int
    is_whole: bool


class IngestionWorker:
    """Ingests what waits, in a thread of its own."""

    def __init__(
        self,
        data: DataDir,
        engine: Engine,
        open_embedder: Callable[[], Embedder],
        parsing: ParsingConfig,
        mode: ChunkingMode = ChunkingMode.auto,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            data: The data directory.
            engine: The database.
            open_embedder: Returns the embedder, loading it at the first call.
            parsing: What parsing one file may cost.
            mode: How documents are cut; a request says only how large.
        """
        self._data = data
        self._engine = engine
        self._open_embedder = open_embedder
        self._parsing = parsing
        self._mode = mode
        self._held_up: dict[int, _HeldUp] = {}  # by the store's row
        self._last_served = 0  # the row of the store whose files were taken last
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with what the last gateway left."""
        self._thread = threading.Thread(target=self._run, name="ingestion", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Finish the files that are being ingested, if they take no longer than that; the rest is for the next start.

        Args:
            timeout_s: How long to wait. What is not done then is left as a kill would leave it, which loses nothing.
        """
        self._is_stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            try:
                has_worked = self.work_once()
                if not has_worked:
                    self.tidy()
                pause_s = 0.0 if has_worked else self._tell_pause_s()
            except (Conflict, StorageFull) as error:
                logger.warning("ingestion waits: %s", error.message)
                pause_s = RETRY_S
            except Exception:
                logger.exception("ingestion failed")
                pause_s = RETRY_S
            if pause_s and not self._is_stopping:
                self._wake.wait(pause_s)

    def work_once(self) -> bool:
        """Ingest the oldest files that wait in the next store that can be changed now; return whether there were any.

        Raises:
            Conflict: Another process is writing to the database; the files go on waiting.
            StorageFull: The disk is full; the files go on waiting.
        """
        self._drop_called_off()
        found = self._take()
        if found is None:
            return False
        store, chunking, waiting = found
        there, missing = self._find_sources([row for row in waiting if row.is_whole])
        failures = {row.document: ("invalid_file", "The file was deleted before it could be read.") for row in missing}
        failures |= {row.document: ("server_error", DAMAGED) for row in waiting if not row.is_whole}
        if there:
            try:
                tools = Tools(self._open_embedder(), chunking, self._parsing)
                report = ingest_files(self._data, store.name, there, tools, must_exist=True)
                failures |= {failure.file: (failure.code, failure.reason) for failure in report.failures}
            except StorageFull:
                raise
            except Conflict as error:
                self._hold_up(store, error)
                return True
            except NotFound as error:
                if self._is_there(store):  # else the store went, and its rows with it
                    failures |= {file.name: (error.openai_code, error.message) for file in there}
            except LoamError as error:
                failures |= {file.name: (error.openai_code, error.message) for file in there}
            except Exception:
                logger.exception("files of store %s could not be ingested", store.name)
                words = "Something went wrong in the gateway. Its log has the details."
                failures |= {file.name: ("server_error", words) for file in there}
        if self._held_up.pop(store.id, None):
            logger.info("the files of vector store %s go on", store.name)
        reach("attachments.made")
        self._settle(store, chunking, waiting, failures)
        reach("attachments.settled")
        self._drop_called_off()
        return True

    def _hold_up(self, store: Store, error: Conflict) -> None:
        """Pass over a store's files for a while; said once as long as the reason is the same."""
        pause_s = IDLE_S if error.retry_after_s is None else RETRY_S  # the former: until a person does something
        before = self._held_up.get(store.id)
        if before is None or before.reason != error.message:
            logger.warning("the files of vector store %s wait, others go on: %s", store.name, error.message)
        self._held_up[store.id] = _HeldUp(error.message, time.monotonic() + pause_s)

    def _tell_pause_s(self) -> float:
        """Return how long nothing is to be done: until a store that was passed over has its turn, if that is sooner."""
        now = time.monotonic()
        return max(0.0, min([IDLE_S, *(held.until_s - now for held in self._held_up.values())]))

    def _is_there(self, store: Store) -> bool:
        with read_transaction(self._engine) as connection:
            now = select_store(connection, store.name)
        return now is not None and now.id == store.id

    def _take(self) -> tuple[Store, ChunkingConfig, list[_Waiting]] | None:
        """Return the oldest files of the store whose turn it is, cut alike; those of stores held up wait on."""
        first = text(  # stores take turns, so that the thousands of one hold up no other
            "SELECT f.store_id, f.max_tokens, f.overlap_tokens, s.name FROM vector_store_files f "
            "JOIN stores s ON s.id = f.store_id WHERE f.status = 'in_progress' AND f.store_id NOT IN :held_up "
            "ORDER BY f.store_id <= :last, f.store_id, f.number LIMIT 1"
        ).bindparams(bindparam("held_up", expanding=True))
        rest = text(
            "SELECT number FROM vector_store_files WHERE status = 'in_progress' "
            "AND store_id = :store_id AND max_tokens = :max_tokens AND overlap_tokens = :overlap_tokens "
            "ORDER BY number LIMIT :limit"
        )
        now = time.monotonic()
        held_up = {store: held for store, held in self._held_up.items() if held.until_s > now}
        with read_transaction(self._engine) as connection:
            head = connection.execute(first, {"held_up": list(held_up), "last": self._last_served}).mappings().first()
            if head is None:
                self._held_up = held_up  # nothing waits any more for those whose turn it is
                return None
            self._last_served = head["store_id"]
            numbers = connection.execute(rest, {**head, "limit": GROUP_FILES}).scalars().all()
            rows = select_files(connection, numbers)
            store = select_store(connection, head["name"])
        if store is None:
            return None
        waiting = [
            _Waiting(row["number"], row["file_id"], row["document"], row["created_at"], is_file_whole(row))
            for row in sorted(rows, key=lambda row: row["number"])
        ]
        if not any(row.is_whole for row in waiting):
            return store, ChunkingConfig(), waiting  # nothing will be cut, and a damaged row may name no lengths
        return store, ChunkingConfig(head["max_tokens"], head["overlap_tokens"], self._mode), waiting

    def _find_sources(self, waiting: Sequence[_Waiting]) -> tuple[list[SourceFile], list[_Waiting]]:
        """Return where the files' bytes lie, and the rows whose upload has gone."""
        there: list[SourceFile] = []
        missing: list[_Waiting] = []
        for row in waiting:
            path = self._data.files / row.file_id
            try:
                stamp = FileStamp(path.stat().st_size, row.created_at * SECOND_NS, 0)
            except OSError:
                missing.append(row)
                continue
            there.append(SourceFile(path, row.document, stamp))
        return there, missing

    def _settle(
        self,
        store: Store,
        chunking: ChunkingConfig,
        waiting: Sequence[_Waiting],
        failures: dict[str, tuple[str, str]],
    ) -> None:
        """Write what became of each file; one that shall be cut otherwise by now waits on."""
        find = text("SELECT id, status FROM documents WHERE store_id = :store AND name = :name")
        change = text("UPDATE vector_store_files SET status = :status, error_code = :code, error = :error "
                      "WHERE number = :number")  # fmt: skip
        mark = text("UPDATE documents SET is_attached = 1 WHERE id = :id")
        numbers = [row.number for row in waiting]
        with write_transaction(self._engine) as connection, keep_files_sealed(connection, numbers):
            rows = {row["number"]: row for row in select_files(connection, numbers)}
            for row in waiting:
                now = rows.get(row.number)
                if now is None or now["status"] != "in_progress":
                    continue  # called off
                lengths = (now["max_tokens"], now["overlap_tokens"])
                if row.is_whole and lengths != (chunking.max_tokens, chunking.overlap_tokens):
                    continue  # attached again meanwhile, which a damaged row never is
                document = connection.execute(find, {"store": store.id, "name": row.document}).first()
                code, error = failures.get(row.document, (None, None))
                if document is not None:
                    connection.execute(mark, {"id": document.id})
                if document is not None and code is None:
                    put_attributes(connection, document.id, now["attributes"])
                status = "failed" if code or document is None else "completed"
                told = error and hide_folder(error, self._data.root)
                values = {"status": status, "code": code, "error": told, "number": row.number}
                connection.execute(change, values)

    def _drop_called_off(self) -> None:
        """Remove what was made of files that were called off while the worker was, or might have been, on them.

        Their rows say so, whoever was killed in between; those of files that were taken out go, too. A document without
        the worker's stamp is the command line's, which has taken the name of a cancelled file since.
        """
        query = text(
            "SELECT f.number, s.name, d.id AS document FROM vector_store_files f JOIN stores s ON s.id = f.store_id "
            "LEFT JOIN documents d ON d.store_id = f.store_id AND d.name = f.document "
            "WHERE f.status = 'deleted' OR (f.status = 'cancelled' AND d.modified_ns = f.created_at * :second_ns)"
        )
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query, {"second_ns": SECOND_NS}).all()
            stores = {row.name: select_store(connection, row.name) for row in rows}
        for row in rows:
            store = stores[row.name]
            if store is not None and row.document is not None:
                delete_documents(self._engine, store, [row.document])
            with write_transaction(self._engine) as connection:
                statement = text("DELETE FROM vector_store_files WHERE number = :number AND status = 'deleted'")
                connection.execute(statement, {"number": row.number})

    def tidy(self) -> None:
        """Remove expired files and responses, what expired stores hold, and the traces of whatever was deleted."""
        for upload in list_expired_uploads(self._engine):
            detach_everywhere(self._engine, upload.id)  # first: what is cut off here can be done again
            remove_upload(self._engine, self._data, upload)
        for store in list_expired(self._engine):
            with write_transaction(self._engine) as connection:
                connection.execute(text("DELETE FROM vector_store_files WHERE store_id = :id"), {"id": store.id})
            numbers = [document.id for document in read_documents(self._engine, store).values()]
            delete_documents(self._engine, store, numbers)
        remove_old_responses(self._engine)
        forget_departures(self._engine)
        with read_transaction(self._engine) as connection:
            has_traces = connection.execute(text("SELECT EXISTS (SELECT 1 FROM erasures)")).scalar_one()
        if has_traces:
            start = time.monotonic()
            erase_deleted(self._engine, self._data)
            logger.info("traces of deleted documents removed in %.1f s", time.monotonic() - start)
        else:
            truncate_log(self._engine)  # what a reader had kept it from at that time
