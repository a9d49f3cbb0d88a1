"""The indexes that a process holds in memory, each following its store's generation in the database.

A counter of the database tells before each search whether any process has changed anything; only then the store is read
anew, and where it has changed the index takes that in. While a process keeps changing the store, that is done only so
often that little of the time goes into it. Does not know how a search is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine, text

from core.layout import DataDir
from retrieval.config import IndexDevice
from retrieval.database import ChangeCounter, read_transaction
from retrieval.runs import wants_lists
from retrieval.snapshot import StoreIndex, open_index, snapshot_folder, update_index
from retrieval.store import Store, check_embedder, find_store
from retrieval.vectors import EmbedderIdentity

logger = logging.getLogger(__name__)

REFRESH_SHARE = 0.2
"""Most of the time that goes into renewing an index whose store keeps changing."""


class FollowedStore:
    """One store's index, replaced when the store has a new generation. Thread-safe."""

    def __init__(self, engine: Engine, data: DataDir, device: IndexDevice) -> None:
        """Begin without an index."""
        self._engine = engine
        self._data = data
        self._device = device
        self._lock = threading.Lock()
        self._index: StoreIndex | None = None
        self._made_at = 0.0
        self._cost_s = 0.0

    def read(self, store: Store) -> StoreIndex:
        """Return the index of a store as the database has it now, or the one before while it keeps changing."""
        index = self._index
        if index is not None and _is_same(index.store, store):
            return index if index.store == store else replace(index, store=store)  # its settings may have changed
        with self._lock:  # other threads wait here for one that makes it, rather than make it too
            index = self._index
            if index is None or (index.store.id, index.store.embedder) != (store.id, store.embedder):
                index = self._time(lambda: open_index(self._engine, self._data, store, self._device))
            elif not _is_same(index.store, store):
                index = self._renew(index, store)
            self._index = index
            return index

    def _time(self, make: Callable[[], StoreIndex]) -> StoreIndex:
        start = time.monotonic()
        index = make()
        self._made_at = time.monotonic()
        self._cost_s = self._made_at - start
        return index

    def _renew(self, index: StoreIndex, store: Store) -> StoreIndex:
        is_too_soon = (time.monotonic() - self._made_at) * REFRESH_SHARE < self._cost_s
        if is_too_soon and not snapshot_folder(self._data, store).is_dir():  # a snapshot: the ingestion is over
            return index
        return self._time(lambda: self._follow(index))

    def _follow(self, index: StoreIndex) -> StoreIndex:
        """Take in what has changed; where that was much, and a process has saved lists of it, open those instead."""
        index = update_index(self._engine, index, self._device)
        if wants_lists(index.runs) and snapshot_folder(self._data, index.store).is_dir():
            return open_index(self._engine, self._data, index.store, self._device)
        return index


def _is_same(one: Store, other: Store) -> bool:
    return one.id == other.id and one.generation == other.generation


class StoreIndexes:
    """The indexes of a data directory's stores. Thread-safe."""

    def __init__(self, engine: Engine, data: DataDir, device: IndexDevice) -> None:
        """Begin without any."""
        self._engine = engine
        self._data = data
        self._device = device
        self._lock = threading.Lock()
        self._followed: dict[str, FollowedStore] = {}
        self._changes = ChangeCounter(data.database)
        self._known: dict[str, tuple[int, Store]] = {}

    def close(self) -> None:
        """Stop following."""
        self._changes.close()

    def read(self, name: str, embedder: EmbedderIdentity) -> StoreIndex:
        """Return a store's index.

        Args:
            name: The store's name.
            embedder: What queries are embedded with.

        Raises:
            NotFound: There is no such store; those that exist are listed.
            Conflict: The store's vectors are of another embedder.
        """
        changes = self._changes.read()  # before the store is read, so that nothing later is missed
        known = self._known.get(name)
        if known is None or known[0] != changes:
            self._forget_deleted()
            known = changes, find_store(self._engine, name)
            self._known[name] = known
        store = known[1]
        check_embedder(store, embedder)
        with self._lock:
            followed = self._followed.setdefault(name, FollowedStore(self._engine, self._data, self._device))
        return followed.read(store)

    def _forget_deleted(self) -> None:
        """Free the indexes of stores that are there no more."""
        with read_transaction(self._engine) as connection:
            names = set(connection.execute(text("SELECT name FROM stores")).scalars())
        with self._lock:
            for gone in self._followed.keys() - names:
                del self._followed[gone]
                self._known.pop(gone, None)


def measure_vectors(engine: Engine) -> int:
    """Return the bytes of the vectors that all stores' indexes hold, float32. Reads every chunk's row."""
    query = text("SELECT COALESCE(SUM(LENGTH(embeddings)), 0) FROM chunks")
    with read_transaction(engine) as connection:
        return int(connection.execute(query).scalar_one())
