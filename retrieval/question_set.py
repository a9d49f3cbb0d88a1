"""Question sets in BEIR's layout: passages, questions and which passages answer which, to learn from and to judge by.

    corpus.jsonl   {"_id", "title", "text"}        queries.jsonl   {"_id", "text"}
    qrels.tsv      query-id  corpus-id  score      (with a header; a score above 0 means relevant)

Does not know search or models.

Source: https://github.com/beir-cellar/beir, «Load your custom dataset».
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InvalidFile, NotFound, describe_os_error

FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A set of questions over its own passages.

    Attributes:
        name: The folder's name.
        passages: Title and text of each; no title is None.
        questions: Those that at least one passage answers.
        relevant: For each question the positions of the passages that answer it.
    """

    name: str
    passages: list[tuple[str | None, str]]
    questions: list[str]
    relevant: list[frozenset[int]]


def read_question_set(folder: Path) -> QuestionSet:
    """Read a folder.

    Raises:
        NotFound: A file is missing.
        InvalidFile: A line cannot be understood, or nothing in it is relevant to anything.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise NotFound(
            f"{folder}: wanted a question set of {', '.join(FILES)}; missing: {', '.join(missing)}. Check the path."
        )
    corpus = _read_lines(folder / "corpus.jsonl")
    places = {row["_id"]: place for place, row in enumerate(corpus)}
    relevant: dict[str, set[int]] = {}
    for question, passage in _read_judgements(folder / "qrels.tsv"):
        if passage in places:
            relevant.setdefault(question, set()).add(places[passage])
    rows = [row for row in _read_lines(folder / "queries.jsonl") if row["_id"] in relevant]
    if not rows:
        raise InvalidFile(f"{folder}: wanted questions with relevant passages, found none. Check the ids in qrels.tsv.")
    return QuestionSet(
        name=folder.name,
        passages=[(row.get("title") or None, row["text"]) for row in corpus],
        questions=[row["text"] for row in rows],
        relevant=[frozenset(relevant[row["_id"]]) for row in rows],
    )


def _read_text(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: wanted UTF-8 text, found other bytes. Save it as UTF-8.") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, each with an id and a text."""
    rows = []
    for number, line in enumerate(_read_text(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidFile(f"{path}:{number}: wanted a JSON object, found {line[:40]!r}. Mend the line.") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("_id", "text")):
            raise InvalidFile(f'{path}:{number}: wanted an object with "_id" and "text". Mend the line.')
        rows.append(row)
    return rows


def _read_judgements(path: Path) -> list[tuple[str, str]]:
    """Return question and passage of each judgement that says relevant."""
    pairs = []
    for number, line in enumerate(_read_text(path), start=1):
        cells = line.split("\t")
        if number == 1 and not cells[-1].strip().lstrip("-").isdigit():
            continue  # the header
        if len(cells) != 3 or not cells[2].strip().lstrip("-").isdigit():
            raise InvalidFile(f"{path}:{number}: wanted three columns, the last a whole number. Mend the line.")
        if int(cells[2]) > 0:
            pairs.append((cells[0], cells[1]))
    return pairs
