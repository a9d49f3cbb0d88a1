"""A hit's surroundings: the chunks before and after it under the same heading, as one exact slice of the document.

What overlaps is not repeated. Every chunk is held against its hash and the slice against its chunks, so that damage is
refused, not quoted. Does not know how hits are found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, Engine, RowMapping, bindparam, text

from core.errors import ContractError
from retrieval.database import read_transaction
from retrieval.seal import check_chunk, check_text
from retrieval.store import MAX_SQL_PARAMETERS


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A stretch of a document around a chunk.

    Attributes:
        start: First character, as an offset into the document's text.
        end: One past the last.
        text: The slice itself.
    """

    start: int
    end: int
    text: str


def read_surroundings(engine: Engine, numbers: Sequence[int], neighbours: int) -> dict[int, Surroundings]:
    """Return what stands around some chunks; numbers that are gone are left out.

    Args:
        engine: The database.
        numbers: Chunk numbers.
        neighbours: Chunks before and after each, fewer where the heading changes or the document ends.

    Raises:
        ContractError: A text is not what was stored.
    """
    found: dict[int, Surroundings] = {}
    with read_transaction(engine) as connection:
        for start in range(0, len(numbers), MAX_SQL_PARAMETERS):
            batch = [int(number) for number in numbers[start : start + MAX_SQL_PARAMETERS]]
            near = _read_near(connection, batch, neighbours)
            slices = _read_slices(connection, batch, neighbours)
            for number, chunks in near.items():
                found[number] = _cut(number, chunks, slices[number], min(row["start_offset"] for row in chunks))
    return found


@dataclass(frozen=True, slots=True)
class DocumentWindow:
    """A stretch of a document around a chunk, whatever the headings, for people to read on.

    Attributes:
        start: First character, as an offset into the document's text.
        text: The slice itself.
        length: Characters of the whole text.
    """

    start: int
    text: str
    length: int


def read_window(engine: Engine, number: int, around: int) -> DocumentWindow | None:
    """Return the document's text around a chunk; None where the chunk has gone.

    Args:
        engine: The database.
        number: The chunk's.
        around: Characters before and behind it, fewer where the document begins or ends.

    Raises:
        ContractError: The text is not what was stored.
    """
    query = text(
        "SELECT c.start_offset, c.end_offset, c.text AS chunk_text, d.name AS file, d.text, d.text_sha256 "
        "FROM chunks c JOIN documents d ON d.id = c.document_id WHERE c.id = :number"
    )
    with read_transaction(engine) as connection:
        row = connection.execute(query, {"number": number}).mappings().first()
    if row is None:
        return None
    check_text(row)
    words, start, end = row["text"], row["start_offset"], row["end_offset"]
    if words[start:end] != row["chunk_text"]:
        raise _describe_damage(number)
    first = max(0, start - around)
    return DocumentWindow(first, words[first : end + around], len(words))


def _read_near(connection: Connection, numbers: list[int], neighbours: int) -> dict[int, list[RowMapping]]:
    """Return each chunk's neighbours and itself, in order."""
    query = text(
        "SELECT h.id AS hit, c.id, c.ordinal, c.start_offset, c.end_offset, c.heading, c.text, c.sha256 "
        "FROM chunks h JOIN chunks c ON c.document_id = h.document_id "
        "AND c.ordinal BETWEEN h.ordinal - :neighbours AND h.ordinal + :neighbours "
        "WHERE h.id IN :numbers ORDER BY h.id, c.ordinal"
    ).bindparams(bindparam("numbers", expanding=True))
    rows = connection.execute(query, {"numbers": numbers, "neighbours": neighbours}).mappings().all()
    for row in rows:
        check_chunk(row)
    return {number: list(group) for number, group in groupby(rows, key=lambda row: int(row["hit"]))}


def _read_slices(connection: Connection, numbers: list[int], neighbours: int) -> dict[int, str]:
    """Return the text from each chunk's first neighbour to its last."""
    query = text(
        "SELECT n.hit, SUBSTR(d.text, n.first_offset + 1, n.last_offset - n.first_offset) AS slice FROM ("
        "SELECT h.id AS hit, h.document_id, MIN(c.start_offset) AS first_offset, MAX(c.end_offset) AS last_offset "
        "FROM chunks h JOIN chunks c ON c.document_id = h.document_id "
        "AND c.ordinal BETWEEN h.ordinal - :neighbours AND h.ordinal + :neighbours "
        "WHERE h.id IN :numbers GROUP BY h.id, h.document_id) n JOIN documents d ON d.id = n.document_id"
    ).bindparams(bindparam("numbers", expanding=True))
    rows = connection.execute(query, {"numbers": numbers, "neighbours": neighbours})
    return {int(row.hit): row.slice for row in rows}


def _cut(number: int, chunks: list[RowMapping], slice_text: str, offset: int) -> Surroundings:
    """Return the part of a slice that shares the chunk's heading without a break.

    Raises:
        ContractError: The slice does not hold its chunks.
    """
    middle = next(place for place, row in enumerate(chunks) if row["id"] == number)
    first = last = middle
    while first > 0 and chunks[first - 1]["heading"] == chunks[middle]["heading"]:
        first -= 1
    while last + 1 < len(chunks) and chunks[last + 1]["heading"] == chunks[middle]["heading"]:
        last += 1
    kept = chunks[first : last + 1]
    if any(slice_text[row["start_offset"] - offset : row["end_offset"] - offset] != row["text"] for row in kept):
        raise _describe_damage(number)
    start, end = kept[0]["start_offset"], max(row["end_offset"] for row in kept)
    return Surroundings(start, end, slice_text[start - offset : end - offset])


def _describe_damage(number: int) -> ContractError:
    return ContractError(
        f"chunk-{number}: the document's text around it is not what was stored; the database is damaged. Restore "
        "it from a backup, or ingest the document again."
    )
