"""Labelled questions about a store's documents: what `action=tune` is judged by.

One JSON object a line: a question and what answers it, by document name and, where one is given, by words that the
answering chunk holds, or by chunk id.

    {"question": "How long is the warranty?", "file": "warranty.md", "accept": ["26 months"]}
    {"question": "Who signs a leave request?", "files": ["hr/leave.md", "hr/forms.md"]}
    {"question": "What does E42 mean?", "chunks": ["chunk-7"]}

Every fault is named with its line. Does not know how anything is found.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from core.errors import InputError, NotFound, describe_os_error
from retrieval.database import read_transaction
from retrieval.store import Store, parse_chunk_id

MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question and what answers it.

    Attributes:
        text: The question.
        relevant: Units that answer it: chunk numbers, or document numbers where only documents are known.
        by_document: Whether the units are documents; a document then counts once, by its best chunk.
    """

    text: str
    relevant: frozenset[int]
    by_document: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """What a file of labelled questions says about a store.

    Attributes:
        questions: Those that something in the store answers.
        documents: Document number by chunk number, of the whole store.
        unanswerable: Questions that name nothing; they say nothing about weights.
    """

    questions: list[LabelledQuestion]
    documents: dict[int, int]
    unanswerable: int


def read_labels(engine: Engine, store: Store, path: Path) -> Labels:
    """Read labelled questions and find what they name in a store.

    Raises:
        NotFound: There is no such file.
        InputError: A line is not what it should be, or names what the store does not have.
    """
    documents, chunks = _read_store(engine, store)
    faults: list[str] = []
    questions: list[LabelledQuestion] = []
    unanswerable = 0
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line ends, such as U+2028
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: wanted UTF-8 text, found other bytes ({error}).", param="questions") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line)
            question = _resolve(row, documents, chunks)
        except (InputError, NotFound) as error:
            faults.append(f"line {number}: {error.message}")
            continue
        if question is None:
            unanswerable += 1
        else:
            questions.append(question)
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:MAX_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        raise InputError(f"{path}: {len(faults)} faults:{shown}{more}", param="questions")
    return Labels(questions, {number: document for number, (document, _) in chunks.items()}, unanswerable)


def _read_store(engine: Engine, store: Store) -> tuple[dict[str, int], dict[int, tuple[int, str]]]:
    """Return document numbers by name, and document number and text by chunk number."""
    of_store = {"id": store.id}
    with read_transaction(engine) as connection:
        names = connection.execute(text("SELECT name, id FROM documents WHERE store_id = :id"), of_store)
        documents = {row.name: int(row.id) for row in names}
        rows = connection.execute(text("SELECT id, document_id, text FROM chunks WHERE store_id = :id"), of_store)
        return documents, {int(row.id): (int(row.document_id), str(row.text)) for row in rows}


def _parse_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"wanted a JSON object, found something else ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise InputError('wanted an object with text under "question"')
    return row


def _resolve(
    row: Mapping[str, Any], documents: Mapping[str, int], chunks: Mapping[int, tuple[int, str]]
) -> LabelledQuestion | None:
    """Return a question with its units; None where it names nothing.

    Raises:
        InputError: A field is of the wrong kind.
        NotFound: A document or chunk is not in the store.
    """
    question = row["question"]
    if row.get("chunks"):
        numbers = [parse_chunk_id(chunk) for chunk in _read_texts(row, "chunks")]
        if missing := [number for number in numbers if number not in chunks]:
            raise NotFound(f"chunk-{missing[0]} is not in the store; search again for its number now")
        return LabelledQuestion(question, frozenset(numbers), by_document=False)
    names = _read_texts(row, "files") if row.get("files") else [row["file"]] if row.get("file") else []
    if not names:
        return None
    if missing_names := [name for name in names if not isinstance(name, str) or name not in documents]:
        raise NotFound(f"document {missing_names[0]!r} is not in the store; action=status files=true lists them")
    wanted = {documents[name] for name in names}
    answers = [_fold(answer) for answer in _read_texts(row, "accept")] if row.get("accept") else []
    holding = [
        number
        for number, (document, words) in chunks.items()
        if document in wanted and any(answer in _fold(words) for answer in answers)
    ]
    if holding:
        return LabelledQuestion(question, frozenset(holding), by_document=False)
    return LabelledQuestion(question, frozenset(wanted), by_document=True)


def _read_texts(row: Mapping[str, Any], key: str) -> list[str]:
    values = row[key]
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise InputError(f'wanted a list of texts under "{key}"')
    return values


def _fold(words: str) -> str:
    return " ".join(words.split()).casefold()
