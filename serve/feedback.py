"""Feedback: what people said of answers, kept as labelled questions for evaluation and `action=tune`.

Names passages by store, document and chunk id, and copies nothing of them. Every function takes the owner and asks SQL
for it, so that another's is as what does not exist. Does not know HTTP.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, bindparam, text

from core.errors import NotFound
from retrieval.database import read_transaction, write_transaction
from retrieval.store import MAX_SQL_PARAMETERS, Passage, parse_chunk_id
from serve.sentences import remove_marks
from serve.windows import Window, cut_window

ID_PREFIX = "fb_"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody said of an answer.

    Attributes:
        id: `fb_…`.
        created_at: Unix seconds.
        rating: `up` or `down`.
        model: What was asked.
        question: As it was asked.
        answer: As it was given, marks included.
        comment: In the person's words; None where there is none.
        expected: What the answer should have said; None where nobody says.
        passages: Those that answer the question, each with chunk_id, store, file, heading and page.
    """

    id: str
    created_at: int
    rating: str
    model: str
    question: str
    answer: str
    comment: str | None
    expected: str | None
    passages: list[dict[str, Any]]


def keep_feedback(engine: Engine, owner: str, values: dict[str, Any], passages: Sequence[Passage]) -> Feedback:
    """Keep what an owner says of an answer.

    Args:
        engine: The database.
        owner: Who says it.
        values: rating, model, question, answer, comment, expected.
        passages: Those that answer the question.
    """
    named = [
        {"chunk_id": one.chunk_id, "store": one.store, "file": one.file, "heading": one.heading, "page": one.page}
        for one in passages
    ]
    row = {
        **values,
        "id": f"{ID_PREFIX}{secrets.token_hex(12)}",
        "owner": owner,
        "created_at": int(time.time()),
        "passages": json.dumps(named, ensure_ascii=False),
    }
    statement = text(
        "INSERT INTO feedback (id, owner, created_at, rating, model, question, answer, comment, expected, passages) "
        "VALUES (:id, :owner, :created_at, :rating, :model, :question, :answer, :comment, :expected, :passages)"
    )
    with write_transaction(engine) as connection:
        connection.execute(statement, row)
    return find_feedback(engine, owner, row["id"])


def find_feedback(engine: Engine, owner: str, feedback_id: str) -> Feedback:
    """Return one of an owner's.

    Raises:
        NotFound: There is none of that id, or it is another's.
    """
    query = text("SELECT * FROM feedback WHERE id = :id AND owner = :owner")
    with read_transaction(engine) as connection:
        row = connection.execute(query, {"id": feedback_id, "owner": owner}).mappings().first()
    if row is None:
        raise _describe_missing(feedback_id)
    return _to_feedback(row)


def _describe_missing(feedback_id: str) -> NotFound:
    return NotFound(f"feedback {feedback_id!r}: there is none.", param="feedback_id")


def _to_feedback(row: RowMapping) -> Feedback:
    values = {name: row[name] for name in Feedback.__dataclass_fields__ if name != "passages"}
    return Feedback(**values, passages=json.loads(row["passages"]))


def list_feedback(
    engine: Engine, owner: str, window: Window, *, rating: str | None = None
) -> tuple[list[Feedback], bool]:
    """Return one page of an owner's feedback, and whether more follow.

    Raises:
        NotFound: The window begins behind one that is not there.
    """
    order = "ASC" if window.is_rising else "DESC"
    query = text(
        "SELECT id FROM feedback WHERE owner = :owner AND (:rating IS NULL OR rating = :rating) "  # noqa: S608
        f"ORDER BY number {order}"
    )
    with read_transaction(engine) as connection:
        ids = list(connection.execute(query, {"owner": owner, "rating": rating}).scalars())
        chosen, has_more = cut_window(ids, window)
        reading = text("SELECT * FROM feedback WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        rows = {row["id"]: row for row in connection.execute(reading, {"ids": chosen}).mappings()}
    return [_to_feedback(rows[one]) for one in chosen], has_more


def delete_feedback(engine: Engine, owner: str, feedback_id: str) -> None:
    """Remove one of an owner's.

    Raises:
        NotFound: There is none of that id, or it is another's.
    """
    statement = text("DELETE FROM feedback WHERE id = :id AND owner = :owner")
    with write_transaction(engine) as connection:
        removed = connection.execute(statement, {"id": feedback_id, "owner": owner}).rowcount
    if not removed:
        raise _describe_missing(feedback_id)


def export_questions(engine: Engine, owner: str, store: str | None, use: str) -> list[dict[str, Any]]:
    """Return an owner's feedback as labelled questions, oldest first.

    A passage that is still there is named by its chunk, one that was replaced by its document, one that has gone not at
    all. What a good answer said is the `answer`; of a bad one only what was expected is.

    Args:
        engine: The database.
        owner: Whose.
        store: Only questions with a passage of this store, and only its passages; None: all.
        use: `evaluation`: those that say what is right; `tuning`: those that name what answers them.
    """
    query = text("SELECT * FROM feedback WHERE owner = :owner ORDER BY number")
    with read_transaction(engine) as connection:
        found = [_to_feedback(row) for row in connection.execute(query, {"owner": owner}).mappings()]
        living = _find_living(connection, {passage["chunk_id"] for one in found for passage in one.passages})
        naming = text("SELECT s.name, d.name FROM documents d JOIN stores s ON s.id = d.store_id")
        documents = {(name, file) for name, file in connection.execute(naming)}
    rows = [_to_question(one, store, living, documents) for one in found]
    needed = {"answer"} if use == "evaluation" else {"chunks", "files"}
    return [row for row in rows if row is not None and needed & row.keys()]


def _find_living(connection: Connection, chunk_ids: set[str]) -> set[str]:
    """Return those of some chunks that are still there."""
    query = text("SELECT id FROM chunks WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
    by_number = {parse_chunk_id(chunk_id): chunk_id for chunk_id in chunk_ids}
    numbers, living = list(by_number), set()
    for start in range(0, len(numbers), MAX_SQL_PARAMETERS):
        batch = numbers[start : start + MAX_SQL_PARAMETERS]
        living |= {by_number[number] for number in connection.execute(query, {"ids": batch}).scalars()}
    return living


def _to_question(
    one: Feedback, store: str | None, living: set[str], documents: set[tuple[str, str]]
) -> dict[str, Any] | None:
    """Return feedback as a line of `retrieval/labels.py` and of an evaluation; None where it is not of the store."""
    passages = [passage for passage in one.passages if store in (None, passage["store"])]
    if store is not None and not passages:
        return None
    row: dict[str, Any] = {"id": one.id, "question": one.question}
    answer = one.expected or (remove_marks(one.answer) if one.rating == "up" else None)
    if answer:
        row["answer"] = answer
    chunks = [passage["chunk_id"] for passage in passages if passage["chunk_id"] in living]
    files = [passage["file"] for passage in passages if (passage["store"], passage["file"]) in documents]
    if chunks and len(chunks) == len(passages):
        row["chunks"] = chunks
    if files:
        row["files"] = list(dict.fromkeys(files))
    if one.expected:
        row["accept"] = [one.expected]
    return {**row, "rating": one.rating, "model": one.model, "given": one.answer, "comment": one.comment}
