"""Stores, documents and chunks in the database: the truth that every index is made from.

A document's text, chunks and embeddings are committed in one transaction and replaced in one. Each commit raises the
store's generation. Chunk ids are never used twice, so an old id finds its text or nothing. Does not know how text is
parsed, cut, embedded or searched.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, bindparam, text

from core.errors import Conflict, ContractError, LoamError, NotFound
from core.failpoints import reach
from core.layout import NAME_PATTERN, check_name
from retrieval import seal
from retrieval.attributes import Value, index_attributes
from retrieval.database import read_transaction, write_transaction
from retrieval.source import UNKNOWN_STAMP, FileStamp
from retrieval.stop_words import LANGUAGE
from retrieval.vectors import ChunkVectors, EmbedderIdentity, pack_vectors, unpack_vectors

CHUNK_ID_PREFIX = "chunk-"
MAX_SQL_PARAMETERS = 500
ALL_ROWS = 2**62


class DocumentStatus(Enum):
    """Whether a document can be found; `in_progress`: it is being made for the first time."""

    in_progress = "in_progress"
    completed = "completed"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class Store:
    """A store as the database has it.

    Attributes:
        id: Its row.
        name: Its name.
        embedder: What made its vectors.
        generation: Number of its last committed change.
        tuned: The settings that tuning found, as JSON (settings.py).
        language: What its words are stemmed as: one of Snowball's stemmers.
    """

    id: int
    name: str
    embedder: EmbedderIdentity
    generation: int
    tuned: str | None = None
    language: str = LANGUAGE


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk on its way into the database.

    Attributes:
        start: First character, as an offset into the document's text.
        end: One past the last.
        page: Counted from 1, or None.
        heading: Heading path joined by " > ", or None.
        text: The slice itself.
        vectors: All of them.
    """

    start: int
    end: int
    page: int | None
    heading: str | None
    text: str
    vectors: ChunkVectors


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A parsed document on its way into the database.

    Attributes:
        name: Path below the source, with "/".
        sha256: Of the file's bytes.
        recipe: Everything besides the bytes that decides the chunks; a change makes the document new.
        size_bytes: Of the file.
        text: What the chunks are slices of.
        chunks: In order.
        stamp: Of the file, as it was before its bytes were read.
        attributes: What the document states of itself.
    """

    name: str
    sha256: str
    recipe: str
    size_bytes: int
    text: str
    chunks: tuple[NewChunk, ...]
    stamp: FileStamp = UNKNOWN_STAMP
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as stored, with where it stands.

    Attributes:
        store: The store's name.
        file: The document's name.
        chunk_id: Unique in the data directory; never used again.
        page: Counted from 1, or None.
        heading: Heading path joined by " > ", or None.
        start: First character, as an offset into the document's text.
        end: One past the last.
        text: The slice itself.
    """

    store: str
    file: str
    chunk_id: str
    page: int | None
    heading: str | None
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """What the indexes are made from: a chunk's number, its words and its vectors."""

    id: int
    heading: str | None
    text: str
    vectors: ChunkVectors


def find_store(engine: Engine, name: str) -> Store:
    """Return a store by name.

    Raises:
        NotFound: There is none; those that exist are listed.
    """
    with read_transaction(engine) as connection:
        store = select_store(connection, name)
        known = [] if store else [str(row) for row in connection.execute(text("SELECT name FROM stores")).scalars()]
    if store is None:
        found = f"wanted one of {', '.join(sorted(known))}" if known else "there are no stores yet"
        raise NotFound(
            f"store {name!r}: {found}. Make it: python retrieval/run.py action=ingest store=NAME source=FOLDER",
            param="store",
        )
    return store


def select_store(connection: Connection, name: str) -> Store | None:
    """Return a store by name, or None."""
    if not NAME_PATTERN.fullmatch(name):
        return None  # as no store is called
    row = connection.execute(text("SELECT * FROM stores WHERE name = :name"), {"name": name}).mappings().first()
    if row is None:
        return None
    identity = EmbedderIdentity(row["embedder"], row["dimension"], row["embedder_sha256"])
    return Store(row["id"], row["name"], identity, row["generation"], row["tuned"], row["language"])


def make_store(engine: Engine, name: str, embedder: EmbedderIdentity, language: str | None = None) -> Store:
    """Return the store of that name, made now if there was none.

    Args:
        engine: The database.
        name: Of the store.
        embedder: What makes its vectors.
        language: What its words are stemmed as; None: as they are, in a new store as LANGUAGE.

    Raises:
        Conflict: It exists with vectors of another embedder, or in another language.
    """
    check_name(name, "store")
    with write_transaction(engine) as connection:
        store = select_store(connection, name)
        if store is None:
            connection.execute(
                text(
                    "INSERT INTO stores (name, embedder, dimension, embedder_sha256, language, created_at) "
                    "VALUES (:name, :embedder, :dimension, :sha256, :language, :now)"
                ),
                {
                    "name": name,
                    "embedder": embedder.name,
                    "dimension": embedder.dimension,
                    "sha256": embedder.sha256,
                    "language": language or LANGUAGE,
                    "now": int(time.time()),
                },
            )
            store = select_store(connection, name)
    if store is None:
        raise ContractError(f"store {name!r}: was written and is not there. Check the disk.")
    check_embedder(store, embedder)
    check_same_language(store, language)
    return store


def check_embedder(store: Store, embedder: EmbedderIdentity) -> None:
    """Refuse an embedder that did not make a store's vectors.

    Raises:
        Conflict: Name, dimension or files differ; the message says what to do.
    """
    if store.embedder != embedder:
        raise Conflict(
            f"store {store.name!r}: its vectors are from {_describe(store.embedder)}; the embedder now is "
            f"{_describe(embedder)}. Vectors of different embedders cannot be compared: use the first one "
            f"(embedder.name={store.embedder.name}), or change the store's vectors while it goes on serving: "
            f"python retrieval/run.py action=reembed store={store.name} embedder.name={embedder.name}",
            param="embedder",
        )


def check_same_language(store: Store, language: str | None) -> None:
    """Refuse a language that a store's words are not stemmed as; None is none.

    Raises:
        Conflict: They differ; the message says what to do.
    """
    if language is not None and language != store.language:
        raise Conflict(
            f"store {store.name!r}: its words are stemmed as {store.language}, found language={language}. Leave the "
            "language away, or make a store of another name.",
            param="store",
        )


def _describe(embedder: EmbedderIdentity) -> str:
    return f"{embedder.name} ({embedder.dimension} dimensions, files {embedder.sha256[:12]})"


def read_chunk_vectors(
    engine: Engine, store: Store, hashes: Iterable[str], *, with_spans: bool = False
) -> dict[str, ChunkVectors]:
    """Return the vectors of those chunks that the store has already, by the hash of what they say.

    Vectors that are not what was stored are left out: they are made anew, not copied.

    Args:
        engine: The database.
        store: The store.
        hashes: Of what chunks say.
        with_spans: Leave out chunks that have no spans.
    """
    query = text(
        "SELECT sha256, embeddings, spans, embeddings_sha256 FROM chunks WHERE store_id = :id AND sha256 IN :hashes"
    ).bindparams(bindparam("hashes", expanding=True))
    wanted, dimension = sorted(set(hashes)), store.embedder.dimension
    known: dict[str, ChunkVectors] = {}
    with read_transaction(engine) as connection:
        for start in range(0, len(wanted), MAX_SQL_PARAMETERS):
            batch = {"id": store.id, "hashes": wanted[start : start + MAX_SQL_PARAMETERS]}
            rows = [row for row in connection.execute(query, batch).mappings() if seal.are_vectors_whole(row)]
            known |= {row["sha256"]: unpack_vectors(row["embeddings"], row["spans"], dimension) for row in rows}
    return {key: vectors for key, vectors in known.items() if len(vectors.spans) or not with_spans}


def commit_documents(engine: Engine, store: Store, documents: Sequence[NewDocument]) -> int:
    """Put documents in place of their earlier versions, all in one transaction; on disk when this returns.

    Returns:
        The store's new generation.

    Raises:
        NotFound: The store has been deleted.
    """
    with write_transaction(engine) as connection:
        check_there(connection, store)
        replaced = connection.execute(
            text(
                "SELECT COUNT(*) FROM documents WHERE store_id = :id AND status = 'completed' AND name IN :names"
            ).bindparams(bindparam("names", expanding=True)),
            {"id": store.id, "names": [document.name for document in documents]},
        ).scalar_one()
        index_attributes(connection, [_replace_document(connection, store, document) for document in documents])
        generation = raise_generation(connection, store.id, has_erased=replaced > 0)
        reach("documents.written")
    reach("documents.committed")
    return generation


def check_there(connection: Connection, store: Store) -> None:
    """Refuse to write into a store that is gone: it may be deleted while its documents are made.

    Raises:
        NotFound: It has been deleted since it was read.
    """
    if connection.execute(text("SELECT 1 FROM stores WHERE id = :id"), {"id": store.id}).first() is None:
        raise NotFound(f"store {store.name!r}: was deleted meanwhile.", param="store")


def _replace_document(connection: Connection, store: Store, document: NewDocument) -> int:
    """Return the row of the new version; it keeps the attributes that were set by people."""
    document_id = _exchange_row(connection, store.id, document, None)
    if document.chunks:
        connection.execute(
            seal.INSERT_CHUNK,
            [_chunk_values(store, document_id, number, chunk) for number, chunk in enumerate(document.chunks)],
        )
    return document_id


def commit_failure(engine: Engine, store: Store, document: NewDocument, error: LoamError) -> bool:
    """Record that a file could not be read. An earlier version that could be read stays.

    Returns:
        Whether an earlier version stays.

    Raises:
        NotFound: The store has been deleted.
    """
    with write_transaction(engine) as connection:
        check_there(connection, store)
        earlier = connection.execute(
            text("SELECT status FROM documents WHERE store_id = :id AND name = :name"),
            {"id": store.id, "name": document.name},
        ).scalar()
        if earlier == DocumentStatus.completed.value:
            return True
        _exchange_row(connection, store.id, document, error)
        reach("failure.written")
    reach("failure.committed")
    return False


def _exchange_row(connection: Connection, store_id: int, document: NewDocument, error: LoamError | None) -> int:
    """Put a document's row in place of its earlier one and return it; what people have set of it stays."""
    kept = seal.select_set_attributes(connection, store_id, document.name)
    connection.execute(  # its chunks and attributes go with it (ON DELETE CASCADE)
        text("DELETE FROM documents WHERE store_id = :store_id AND name = :name"),
        {"store_id": store_id, "name": document.name},
    )
    sealed = {
        "store_id": store_id,
        "file": document.name,
        "file_sha256": document.sha256,
        "text_sha256": seal.hash_text(document.text),
        "stated_attributes": json.dumps(dict(document.attributes)),
        "set_attributes": kept,
        "recipe": document.recipe,
        "size_bytes": document.size_bytes,
        "modified_ns": document.stamp.modified_ns,
        "inode": document.stamp.inode,
        "status": (DocumentStatus.failed if error else DocumentStatus.completed).value,
        "error_code": error.openai_code if error else None,
        "error": error.message if error else None,
        "updated_at": int(time.time()),
    }
    result = connection.execute(
        text(
            "INSERT INTO documents (store_id, name, sha256, recipe, size_bytes, modified_ns, inode, status, "
            "error_code, error, stated_attributes, set_attributes, text, text_sha256, seal, updated_at) VALUES "
            "(:store_id, :file, :file_sha256, :recipe, :size_bytes, :modified_ns, :inode, :status, :error_code, "
            ":error, :stated_attributes, :set_attributes, :text, :text_sha256, :seal, :updated_at) RETURNING id"
        ),
        {**sealed, "seal": seal.hash_document(sealed), "text": document.text},
    )
    return int(result.scalar_one())


def _chunk_values(store: Store, document_id: int, ordinal: int, chunk: NewChunk) -> dict[str, Any]:
    embeddings, spans = pack_vectors(chunk.vectors, store.embedder.dimension)
    return seal.seal_chunk(
        {
            "store_id": store.id,
            "document_id": document_id,
            "ordinal": ordinal,
            "start_offset": chunk.start,
            "end_offset": chunk.end,
            "page": chunk.page,
            "heading": chunk.heading,
            "text": chunk.text,
            "sha256": seal.hash_chunk(chunk.heading, chunk.text),
            "embeddings": embeddings,
            "spans": spans,
        }
    )


def raise_generation(connection: Connection, store_id: int, *, has_erased: bool) -> int:
    """Count one more change of a store's chunks, with or without deletions; return the new generation."""
    erased = ", erased_generation = generation + 1" if has_erased else ""
    query = f"UPDATE stores SET generation = generation + 1{erased} WHERE id = :id RETURNING generation"  # noqa: S608
    return int(connection.execute(text(query), {"id": store_id}).scalar_one())


def read_chunks(engine: Engine, store: Store) -> tuple[Store, list[ChunkRow]]:
    """Return a store as it is now and all its chunks, by rising number, as one state of the database.

    Raises:
        NotFound: The store has gone.
        ContractError: A row breaks its contract.
    """
    with read_transaction(engine) as connection:
        now = select_same_store(connection, store)
        return now, select_rows(connection, now)


def select_same_store(connection: Connection, store: Store) -> Store:
    """Return a store as it is now.

    Raises:
        NotFound: It has gone.
    """
    now = select_store(connection, store.name)
    if now is None or now.id != store.id:
        raise NotFound(f"store {store.name!r}: it has just been removed.", param="store")
    return now


def select_rows(connection: Connection, store: Store, after: int = 0, limit: int = ALL_ROWS) -> list[ChunkRow]:
    """Return a store's chunks with numbers above `after`, by rising number; `limit` at most."""
    query = text(
        "SELECT c.id, c.heading, c.text, c.sha256, c.embeddings, c.spans, c.embeddings_sha256 FROM chunks c "
        "WHERE c.store_id = :id AND c.id > :after ORDER BY c.id LIMIT :limit"
    )
    rows = connection.execute(query, {"id": store.id, "after": after, "limit": limit}).mappings()
    return [_to_chunk_row(row, store.embedder.dimension) for row in rows]


def _to_chunk_row(row: RowMapping, dimension: int) -> ChunkRow:
    seal.check_chunk(row)
    seal.check_embeddings(row)
    vectors = unpack_vectors(row["embeddings"], row["spans"], dimension)
    return ChunkRow(row["id"], row["heading"], row["text"], vectors)


def read_passages(engine: Engine, numbers: Sequence[int]) -> dict[int, Passage]:
    """Return passages by chunk number; numbers that are gone are left out.

    Raises:
        ContractError: A passage's text is not what was stored.
    """
    query = text(
        "SELECT c.id, s.name AS store, c.page, c.heading, c.start_offset, c.end_offset, c.text, c.sha256, c.ordinal, "  # noqa: S608
        f"c.embeddings_sha256, c.seal, {seal.DOCUMENT_COLUMNS} FROM chunks c "
        "JOIN documents d ON d.id = c.document_id JOIN stores s ON s.id = c.store_id WHERE c.id IN :numbers"
    ).bindparams(bindparam("numbers", expanding=True))
    passages: dict[int, Passage] = {}
    with read_transaction(engine) as connection:
        for start in range(0, len(numbers), MAX_SQL_PARAMETERS):
            batch = [int(number) for number in numbers[start : start + MAX_SQL_PARAMETERS]]
            for row in connection.execute(query, {"numbers": batch}).mappings():
                seal.check_chunk(row)
                seal.check_seal(row)
                seal.check_document(row)
                passages[row["id"]] = _to_passage(row)
    return passages


def _to_passage(row: RowMapping) -> Passage:
    return Passage(
        store=row["store"],
        file=row["file"],
        chunk_id=f"{CHUNK_ID_PREFIX}{row['id']}",
        page=row["page"],
        heading=row["heading"],
        start=row["start_offset"],
        end=row["end_offset"],
        text=row["text"],
    )


def parse_chunk_id(chunk_id: str) -> int:
    """Return the number in a chunk's id.

    Raises:
        NotFound: It is no chunk's id.
    """
    number = chunk_id.removeprefix(CHUNK_ID_PREFIX)
    if not chunk_id.startswith(CHUNK_ID_PREFIX) or not number.isascii() or not number.isdigit() or len(number) > 18:
        raise NotFound(f"chunk {chunk_id!r}: there is none. Search again for a current one.", param="chunk_id")
    return int(number)
