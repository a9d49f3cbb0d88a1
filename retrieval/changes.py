"""What has changed in a store since an index was made: chunks that came, by rising number, and chunks that went.

Chunk numbers are never used twice and a chunk is never rewritten, so what came has numbers above the last one seen, and
a block of numbers of which the database counts as many as the index has lost nothing. Only blocks that lost something
are read. What came is handed over in batches, so that a store may be larger than memory. Does not know what an index
does with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from retrieval.database import read_transaction
from retrieval.store import ChunkRow, Store, select_rows, select_same_store

BLOCK = 1024
"""Chunk numbers that are counted together."""
BATCH = 32_768
"""Most chunks that are read at once: so many that the memory of their vectors goes back to the system once freed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What an index has to take in.

    Attributes:
        store: The store as it is now.
        last: The largest chunk number that the index has seen then.
        removed: (removed,) int64: numbers of chunks that the index has and the store has no more, rising.
    """

    store: Store
    last: int
    removed: NDArray[np.int64]


def read_changes(
    engine: Engine, store: Store, numbers: NDArray[np.int64], last: int, take: Callable[[list[ChunkRow]], None]
) -> Changes:
    """Read what has changed, as one state of the database.

    Args:
        engine: The database.
        store: The store, of any generation.
        numbers: (chunks,) int64: numbers of the chunks that the index has, rising.
        last: The largest chunk number that the index has ever seen, 0 or more.
        take: Called with the new chunks, by rising number and at most `BATCH` at once.

    Raises:
        NotFound: The store has gone.
        ContractError: A row breaks its contract.
    """
    with read_transaction(engine) as connection:
        now = select_same_store(connection, store)
        removed = _find_removed(connection, now, numbers, last)
        while rows := select_rows(connection, now, last, BATCH):
            take(rows)
            last = rows[-1].id
        return Changes(now, last, removed)


def _find_removed(connection: Connection, store: Store, numbers: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    counting = text(
        "SELECT id / :block AS block, COUNT(*) AS size FROM chunks WHERE store_id = :id AND id <= :last GROUP BY 1"
    )
    rows = connection.execute(counting, {"block": BLOCK, "id": store.id, "last": last})
    there = {int(row.block): int(row.size) for row in rows}
    blocks, sizes = np.unique(numbers // BLOCK, return_counts=True)
    within = text("SELECT id FROM chunks WHERE store_id = :id AND id BETWEEN :first AND :last")
    removed: list[NDArray[np.int64]] = [numbers[:0]]
    for block, size in zip(blocks.tolist(), sizes.tolist(), strict=True):
        if there.get(block, 0) == size:
            continue
        first, end = block * BLOCK, block * BLOCK + BLOCK - 1
        ids = connection.execute(within, {"id": store.id, "first": first, "last": end}).scalars().all()
        known = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, end, side="right")]
        removed.append(np.setdiff1d(known, np.array(ids, dtype=np.int64)))
    return np.concatenate(removed)
