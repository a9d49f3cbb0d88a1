"""Labelled collections in the layout of BEIR: corpus.jsonl, queries.jsonl and qrels.tsv in one folder.

Every fault of the three files is named with file and line. Does not know how anything is searched.

Source: https://github.com/beir-cellar/beir, «Load your custom dataset».
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError, NotFound, describe_os_error

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.tsv"
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CorpusPassage:
    """One document of a collection."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Collection:
    """A labelled collection.

    Attributes:
        name: Of its folder.
        passages: Documents, in the order of the file.
        queries: Text by id, in the order of the file.
        judged: Gain by document id, by query id; only what is judged.
    """

    name: str
    passages: list[CorpusPassage]
    queries: dict[str, str]
    judged: dict[str, dict[str, float]]

    def labelled_queries(self) -> dict[str, str]:
        """Return the queries that have a relevant document."""
        return {
            query: text
            for query, text in self.queries.items()
            if any(gain > 0 for gain in self.judged.get(query, {}).values())
        }


def read_collection(folder: Path) -> Collection:
    """Read a collection.

    Raises:
        NotFound: One of its files is missing.
        InputError: A line is not what it should be; the first twenty faults are named.
    """
    missing = [name for name in (CORPUS, QUERIES, QRELS) if not (folder / name).is_file()]
    if missing:
        raise NotFound(
            f"{folder}: wanted {CORPUS}, {QUERIES} and {QRELS}, found no {', no '.join(missing)}. "
            "Give the folder of a collection in BEIR's layout."
        )
    faults: list[str] = []
    passages = [
        CorpusPassage(row["_id"], row.get("title") or "", row["text"])
        for row in _read_rows(folder / CORPUS, faults, {"_id": str, "text": str})
    ]
    queries = {row["_id"]: row["text"] for row in _read_rows(folder / QUERIES, faults, {"_id": str, "text": str})}
    judged = _read_judgements(folder / QRELS, {passage.id for passage in passages}, queries, faults)
    if len({passage.id for passage in passages}) < len(passages):
        faults.append(f"{CORPUS}: wanted each _id once, found some twice")
    if faults:
        more = f"\n  and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        shown = "".join(f"\n  {fault}" for fault in faults[:MAX_FAULTS_SHOWN])
        raise InputError(f"{folder}: {len(faults)} faults:{shown}{more}")
    return Collection(folder.name, passages, queries, judged)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: wanted UTF-8 text, found other bytes ({error}).") from error
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error


def _read_rows(path: Path, faults: list[str], wanted: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Yield a file's objects; note the lines that are not what is wanted."""
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            faults.append(f"{path.name}, line {number}: wanted a JSON object, found {error}")
            continue
        lacking = [
            key for key, kind in wanted.items() if not isinstance(row, dict) or not isinstance(row.get(key), kind)
        ]
        if lacking:
            faults.append(f"{path.name}, line {number}: wanted text under {', '.join(lacking)}")
            continue
        yield row


def _read_judgements(
    path: Path, passages: set[str], queries: dict[str, str], faults: list[str]
) -> dict[str, dict[str, float]]:
    """Return gain by document by query; the first line is a header."""
    judged: dict[str, dict[str, float]] = {}
    for number, line in _read_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 or not line.strip():
            continue
        try:
            query, passage, gain = cells[0], cells[1], float(cells[2])
        except (IndexError, ValueError):
            faults.append(f"{path.name}, line {number}: wanted query-id, corpus-id and score between tabs")
            continue
        if query not in queries or passage not in passages:
            faults.append(f"{path.name}, line {number}: wanted ids of both files, found {query} and {passage}")
            continue
        judged.setdefault(query, {})[passage] = gain
    return judged
