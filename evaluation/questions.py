r"""Questions to evaluate by: what is asked, and what a right answer must meet. One JSON object a line.

    {"id": "w1", "question": "How long is the warranty?", "accept": ["26 months"], "file": "warranty.md"}
    {"id": "s1", "question": "How do I return goods?", "kind": "style", "regex": "^Acme Desk answer:\\n1\\. "}
    {"id": "u1", "question": "Who founded the company?", "kind": "unanswerable"}

Keys: `id`, `question`, `kind` (knowledge, style, unanswerable or changed; fact and multi-hop count as knowledge),
`answer` or `answers`, `accept`, `file` or `files`, `chunks`, `passages`, `regex`, `schema`; others are left alone.
Every fault is named with its line. Does not know who answers, or how an answer is scored (metrics.py does).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import jsonschema

from core.errors import InputError, describe_os_error

MAX_FAULTS_SHOWN = 20

T = TypeVar("T")


class Kind(Enum):
    """What a question tests; a verdict is given for each.

    `knowledge`: facts. `style`: the form of the answer. `unanswerable`: the answer must decline. `changed`: facts that
    changed after training.
    """

    knowledge = "knowledge"
    style = "style"
    unanswerable = "unanswerable"
    changed = "changed"


KINDS = {kind.value: kind for kind in Kind} | {"fact": Kind.knowledge, "multi-hop": Kind.knowledge}
"""A file's word for the kind, and the kind."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its demands; what is not given is not demanded.

    Attributes:
        id: Unique in its file; `line-N` where the file gives none.
        question: What is asked.
        kind: What it tests.
        label: The file's own word for the kind, such as `multi-hop`.
        answers: Right answers in full; the first is the reference of metrics that take one.
        accept: Short texts; an answer that holds one of them is right.
        files: Documents that hold the answer.
        chunks: Ids of the chunks that hold it; they come before `files`.
        passages: Texts of the passages that hold it; they come before `files`.
        regex: Pattern that the answer, its citation marks removed, must match somewhere.
        schema: JSON schema that the answer must follow.
    """

    id: str
    question: str
    kind: Kind = Kind.knowledge
    label: str = Kind.knowledge.value
    answers: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    chunks: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    regex: str | None = None
    schema: dict[str, Any] | None = None


def read_questions(path: Path) -> list[Question]:
    """Read a file of questions.

    Raises:
        NotFound: There is no such file.
        InputError: Lines are not what they should be; all are named. Or there is no question at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: wanted UTF-8 text, found other bytes ({error}).", param="questions") from error
    questions: dict[str, Question] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = parse_question(json.loads(line), f"line-{number}")
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: wanted a JSON object, found something else ({error})")
            continue
        except InputError as error:
            faults += [f"line {number}: {fault}" for fault in error.message.split("\n")]
            continue
        if question.id in questions:
            faults.append(f"line {number}: id: {question.id!r} stands on an earlier line, too")
        questions[question.id] = question
    if not questions and not faults:
        faults = ["wanted at least one question, found none"]
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:MAX_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        raise InputError(f"{path}: {len(faults)} faults in the questions:{shown}{more}", param="questions")
    return list(questions.values())


def parse_question(row: Any, default_id: str) -> Question:
    """Return a row as a question.

    Args:
        row: A parsed line, any JSON value.
        default_id: Where the row has none.

    Raises:
        InputError: It is none; one fault a line.
    """
    if not isinstance(row, dict):
        raise InputError(f"wanted a JSON object, found {type(row).__name__}")
    faults: list[str] = []
    label = row.get("kind") or Kind.knowledge.value
    if not isinstance(label, str) or label not in KINDS:
        faults.append(f"kind: wanted one of {', '.join(KINDS)}; found {label!r}")
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        faults.append("question: wanted text")
    given_id = row.get("id", default_id)
    if not isinstance(given_id, str) or not given_id.strip():
        faults.append("id: wanted text, or no id at all")
    lists = {
        "answers": _read_texts(row, "answers", "answer", faults),
        "accept": _read_texts(row, "accept", None, faults),
        "files": _read_texts(row, "files", "file", faults),
        "chunks": _read_texts(row, "chunks", None, faults),
        "passages": _read_texts(row, "passages", None, faults),
    }
    regex, schema = _read_regex(row, faults), _read_schema(row, faults)
    is_unanswerable = KINDS.get(str(label)) is Kind.unanswerable
    if is_unanswerable and lists["accept"]:
        faults.append("accept: an unanswerable question has no right answer; remove it or change the kind")
    if not is_unanswerable and not lists["accept"] and not lists["answers"] and regex is None and schema is None:
        faults.append("wanted at least one of answer, answers, accept, regex, schema: nothing says what is right")
    if faults:
        raise InputError("\n".join(faults))
    return Question(given_id, row["question"], KINDS[label], label, **lists, regex=regex, schema=schema)


def _read_texts(row: Mapping[str, Any], key: str, single: str | None, faults: list[str]) -> tuple[str, ...]:
    """Return the texts under a key, or the one under its singular."""
    values = row.get(key)
    if values is None and single is not None and row.get(single) is not None:
        key, values = single, [row[single]]
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        faults.append(f"{key}: wanted {'text' if key == single else 'a list of texts'}, none of them empty")
        return ()
    return tuple(values)


def _read_regex(row: Mapping[str, Any], faults: list[str]) -> str | None:
    pattern = row.get("regex")
    if pattern is None:
        return None
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        faults.append(f"regex: wanted a regular expression of Python's, found {pattern!r} ({error})")
        return None
    return str(pattern)


def _read_schema(row: Mapping[str, Any], faults: list[str]) -> dict[str, Any] | None:
    schema = row.get("schema")
    if schema is None:
        return None
    if not isinstance(schema, dict):
        faults.append(f"schema: wanted a JSON schema as an object, found {type(schema).__name__}")
        return None
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        faults.append(f"schema: wanted a JSON schema (draft 2020-12), found one that is none ({error.message})")
        return None
    return schema


def spread(rows: Sequence[T], limit: int | None) -> list[T]:
    """Return so many rows, spread evenly over all, or all of them: files are often sorted."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


def to_row(question: Question) -> dict[str, Any]:
    """Return a question as a line of a file has it; what is not given is left out."""
    row: dict[str, Any] = {"id": question.id, "question": question.question, "kind": question.label}
    for key in ("answers", "accept", "files", "chunks", "passages"):
        if values := getattr(question, key):
            row[key] = list(values)
    if question.regex is not None:
        row["regex"] = question.regex
    if question.schema is not None:
        row["schema"] = question.schema
    return row
