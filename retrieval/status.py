"""What stores there are, and what each holds, in numbers. Does not know what is in a document."""

from dataclasses import dataclass

from sqlalchemy import Engine, text

from retrieval.database import read_transaction


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What `action=status` tells about a store.

    Attributes:
        store: Its name.
        files: Documents that can be found.
        failed: Documents that could not be read.
        in_progress: Documents that are being made, or that a killed process left for the next run.
        chunks: Of the completed documents.
        embedder: Name of the model that made its vectors.
        dimension: Of the vectors.
        language: What its words are stemmed as.
        generation: Number of its last committed change.
        created_at: Unix seconds.
    """

    store: str
    files: int
    failed: int
    in_progress: int
    chunks: int
    embedder: str
    dimension: int
    language: str
    generation: int
    created_at: int


def list_stores(engine: Engine) -> list[StoreStatus]:
    """Return every store with its counts, by name."""
    query = text(
        """SELECT s.name, s.embedder, s.dimension, s.language, s.generation, s.created_at,
            (SELECT COUNT(*) FROM documents d WHERE d.store_id = s.id AND d.status = 'completed') AS files,
            (SELECT COUNT(*) FROM documents d WHERE d.store_id = s.id AND d.status = 'failed') AS failed,
            (SELECT COUNT(*) FROM documents d WHERE d.store_id = s.id AND d.status = 'in_progress') AS in_progress,
            (SELECT COUNT(*) FROM chunks c WHERE c.store_id = s.id) AS chunks
        FROM stores s ORDER BY s.name"""
    )
    with read_transaction(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [StoreStatus(store=row["name"], **{key: row[key] for key in row if key != "name"}) for row in rows]
