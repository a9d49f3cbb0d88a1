"""Changing a store's embedder: new vectors are made beside the old ones and take their place in one transaction.

Until then the store is searched by its old vectors, and a process that is killed goes on where it stopped. Chunks keep
their texts and ids. Does not know how texts become vectors.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, RowMapping, bindparam, text

from core.errors import Conflict
from core.failpoints import reach
from core.layout import DataDir
from retrieval.config import IndexDevice
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.embedding import Embedder, embed_passages
from retrieval.erasure import erase_deleted
from retrieval.ingest import lock_store
from retrieval.seal import check_chunk, seal_chunk
from retrieval.snapshot import open_index
from retrieval.store import Store, find_store, raise_generation
from retrieval.vectors import ChunkVectors, EmbedderIdentity, pack_vectors

BATCH_CHUNKS = 256


@dataclass(slots=True)
class ReembedReport:
    """What a change of embedder did.

    Attributes:
        store: The store's name.
        embedder: Name of the model that its vectors are from now.
        chunks: How many it has.
        embedded: How many were embedded now; the others had been before the process was stopped.
        seconds: From start to snapshot.
    """

    store: str
    embedder: str
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0


Progress = Callable[[ReembedReport], None]
"""Called after each batch, which is on disk by then."""


def reembed(data: DataDir, store_name: str, embedder: Embedder, progress: Progress = lambda _: None) -> ReembedReport:
    """Give a store's chunks the vectors of another embedder.

    Args:
        data: The data directory.
        store_name: The store.
        embedder: The new one.
        progress: Called after each batch.

    Returns:
        What was done.

    Raises:
        NotFound: There is no such store.
        Conflict: Its vectors are this embedder's already, or another process is changing it.
        StorageFull: The disk is full; the old vectors serve, and the next run goes on from there.
    """
    start = time.monotonic()
    engine = open_database(data.database)
    try:
        find_store(engine, store_name)
        with lock_store(data, store_name):
            store = find_store(engine, store_name)
            if store.embedder == embedder.identity:
                raise Conflict(f"store {store_name!r}: its vectors are {embedder.identity.name}'s already.")
            report = ReembedReport(store_name, embedder.identity.name)
            _begin(engine, store, embedder.identity)
            _fill(engine, store, embedder, report, progress)
            _swap(engine, store, embedder.identity)
            open_index(engine, data, find_store(engine, store_name), IndexDevice.cpu)
            erase_deleted(engine, data)
    finally:
        engine.dispose()
    report.seconds = round(time.monotonic() - start, 2)
    return report


def _begin(engine: Engine, store: Store, wanted: EmbedderIdentity) -> None:
    """Note which embedder is coming; vectors that were made for a third one are dropped."""
    with write_transaction(engine) as connection:
        coming = connection.execute(
            text("SELECT embedder_sha256 FROM reembeddings WHERE store_id = :id"), {"id": store.id}
        ).scalar()
        if coming == wanted.sha256:
            return
        connection.execute(
            text("DELETE FROM coming_embeddings WHERE chunk_id IN (SELECT id FROM chunks WHERE store_id = :id)"),
            {"id": store.id},
        )
        connection.execute(text("DELETE FROM reembeddings WHERE store_id = :id"), {"id": store.id})
        connection.execute(
            text("INSERT INTO reembeddings (store_id, embedder_sha256) VALUES (:id, :sha256)"),
            {"id": store.id, "sha256": wanted.sha256},
        )


def _fill(engine: Engine, store: Store, embedder: Embedder, report: ReembedReport, progress: Progress) -> None:
    """Embed every chunk that has no coming vectors yet, batch by batch."""
    with read_transaction(engine) as connection:
        missing = list(
            connection.execute(
                text(
                    "SELECT c.id FROM chunks c LEFT JOIN coming_embeddings n ON n.chunk_id = c.id "
                    "WHERE c.store_id = :id AND n.chunk_id IS NULL ORDER BY c.id"
                ),
                {"id": store.id},
            ).scalars()
        )
        report.chunks = int(
            connection.execute(text("SELECT COUNT(*) FROM chunks WHERE store_id = :id"), {"id": store.id}).scalar_one()
        )
    for start in range(0, len(missing), BATCH_CHUNKS):
        rows = _read_rows(engine, missing[start : start + BATCH_CHUNKS])
        if not rows:  # all have been deleted meanwhile
            continue
        vectors = embed_passages([(row["heading"], row["text"]) for row in rows], embedder)
        values = [_seal(row, found, embedder) for row, found in zip(rows, vectors, strict=True)]
        with write_transaction(engine) as connection:
            connection.execute(
                text(
                    "INSERT INTO coming_embeddings (chunk_id, embeddings, spans, embeddings_sha256, seal) "
                    "SELECT :id, :embeddings, :spans, :embeddings_sha256, :seal "
                    "WHERE EXISTS (SELECT 1 FROM chunks WHERE id = :id)"  # or deleted while it was embedded
                ),
                values,
            )
        reach("reembed.committed")
        report.embedded += len(rows)
        progress(report)


def _read_rows(engine: Engine, numbers: Sequence[int]) -> list[RowMapping]:
    query = text(
        "SELECT id, document_id, ordinal, start_offset, end_offset, page, heading, text, sha256 FROM chunks "
        "WHERE id IN :numbers "
        "ORDER BY id"
    ).bindparams(bindparam("numbers", expanding=True))
    with read_transaction(engine) as connection:
        rows = list(connection.execute(query, {"numbers": list(numbers)}).mappings())
    for row in rows:
        check_chunk(row)
    return rows


def _seal(row: RowMapping, vectors: ChunkVectors, embedder: Embedder) -> dict[str, Any]:
    embeddings, spans = pack_vectors(vectors, embedder.identity.dimension)
    return seal_chunk({**row, "embeddings": embeddings, "spans": spans})


def _swap(engine: Engine, store: Store, wanted: EmbedderIdentity) -> None:
    """Let the coming vectors take the place of the old ones, in one transaction."""
    columns = ("embeddings", "spans", "embeddings_sha256", "seal")
    assignments = ", ".join(
        f"{column} = (SELECT n.{column} FROM coming_embeddings n WHERE n.chunk_id = chunks.id)"  # noqa: S608
        for column in columns
    )
    of_store = {"id": store.id}
    with write_transaction(engine) as connection:
        connection.execute(text(f"UPDATE chunks SET {assignments} WHERE store_id = :id"), of_store)  # noqa: S608
        connection.execute(
            text("DELETE FROM coming_embeddings WHERE chunk_id IN (SELECT id FROM chunks WHERE store_id = :id)"),
            of_store,
        )
        connection.execute(text("DELETE FROM reembeddings WHERE store_id = :id"), of_store)
        connection.execute(
            text(
                "UPDATE stores SET embedder = :name, dimension = :dimension, embedder_sha256 = :sha256 WHERE id = :id"
            ),
            {**of_store, "name": wanted.name, "dimension": wanted.dimension, "sha256": wanted.sha256},
        )
        raise_generation(connection, store.id, has_erased=True)
        reach("reembed.swapped")
    reach("reembed.done")
