"""The knowledge update test: some facts change; how does each arm answer before and after, and what did it take?

    {"question": "w1", "file": "returns.md", "find": "in 45 days", "replace": "in 60 days", "accept": ["60 days"]}

A change names a question of the question file, a text in a document and what stands in its place, and what a right
answer holds afterwards. Documents are copied before they are changed. Does not know how documents are ingested or
models trained; scripts/verdict.py does both.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.errors import InputError, describe_os_error
from core.layout import write_file
from evaluation.answers import Answer
from evaluation.metrics import holds_any
from evaluation.questions import Kind, Question


@dataclass(frozen=True, slots=True)
class Change:
    """One fact that changes.

    Attributes:
        question: The question about it, its `accept` the old fact.
        file: Path of the document in its folder.
        find: A text that stands in the document once.
        replace: What stands in its place afterwards.
        accept: Short texts; an answer that holds one of them knows the new fact.
    """

    question: Question
    file: str
    find: str
    replace: str
    accept: tuple[str, ...]

    @property
    def question_after(self) -> Question:
        """The question with the new fact as its right answer."""
        return dataclasses.replace(self.question, kind=Kind.changed, answers=(), accept=self.accept, regex=None)


@dataclass(frozen=True, slots=True)
class UpdateFinding:
    """How one arm took the changes.

    Attributes:
        arm: Its name.
        n: Changes.
        right_before: Answers before, from the old documents, that held the old fact.
        right_after: Answers after that hold the new fact.
        still_old: Answers after that hold the old fact and not the new one.
        update: What was done for it, in words.
        update_s: Seconds that it took; None where nothing was done.
    """

    arm: str
    n: int
    right_before: int
    right_after: int
    still_old: int
    update: str
    update_s: float | None


def read_changes(path: Path, questions: Mapping[str, Question], documents: Path) -> list[Change]:
    """Read a file of changes and check each against its question and its document.

    Args:
        path: One JSON object a line.
        questions: By id.
        documents: Folder of the documents.

    Raises:
        NotFound: There is no such file.
        InputError: Changes cannot be made; all faults are named by line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: wanted UTF-8 text, found other bytes ({error}).", param="changes") from error
    changes: list[Change] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = [row[key] for key in ("question", "file", "find", "replace")] + row["accept"]
            if not row["accept"] or not all(isinstance(text, str) and text.strip() for text in texts):
                raise TypeError("a value is empty or no text")
        except (ValueError, LookupError, TypeError) as error:
            faults.append(f"line {number}: wanted question, file, find, replace, accept (a list); found {error!r}")
            continue
        question = questions.get(row["question"])
        fault = _find_fault(row, question, documents) or _find_overlap(row, changes, documents)
        if fault or question is None:
            faults.append(f"line {number}: {fault}")
            continue
        changes.append(Change(question, row["file"], row["find"], row["replace"], tuple(row["accept"])))
    if faults or not changes:
        shown = "".join(f"\n  {fault}" for fault in faults) or " no change at all"
        raise InputError(f"{path}: {len(faults)} faults in the changes:{shown}", param="changes")
    return changes


def _find_fault(row: Mapping[str, str], question: Question | None, documents: Path) -> str | None:
    """Return why a change cannot be made, or None."""
    if question is None:
        return f"question: no question has the id {row['question']!r}"
    if not question.accept:
        return f"question: {row['question']} has no `accept`, so its old fact is not known"
    document = documents / row["file"]
    if "\0" in row["file"] or not document.resolve().is_relative_to(documents.resolve()) or not document.is_file():
        return f"file: no document {row['file']} in {documents}"
    try:
        count = document.read_text(encoding="utf-8").count(row["find"])
    except UnicodeDecodeError:
        return f"file: {row['file']} is not plain text; change a Markdown, text or HTML document"
    if count != 1:
        return f"find: wanted {row['find']!r} once in {row['file']}, found it {count} times"
    return None


def _find_overlap(row: Mapping[str, str], changes: Sequence[Change], documents: Path) -> str | None:
    """Return why a change cannot be made beside earlier ones, or None."""
    text = (documents / row["file"]).read_text(encoding="utf-8")
    start, end = text.index(row["find"]), text.index(row["find"]) + len(row["find"])
    for other in changes:
        if other.file != row["file"] or (other.find, other.replace) == (row["find"], row["replace"]):
            continue  # of two questions about one fact both may name its change
        place = text.index(other.find)
        if place < end and start < place + len(other.find):
            return f"find: {row['find']!r} overlaps {other.find!r}, which changes, too; make one change of both"
    return None


def copy_documents(documents: Path, target: Path) -> None:
    """Copy a folder of documents; what is at the target is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(documents, target)


def apply_changes(target: Path, changes: Sequence[Change]) -> None:
    """Make the changes in a copy of the documents, all at once; one that is made already stays."""
    for file in dict.fromkeys(change.file for change in changes):
        replacements = {change.find: change.replace for change in changes if change.file == file}
        pattern = re.compile("|".join(map(re.escape, replacements)))
        text = (target / file).read_text(encoding="utf-8")
        write_file(target / file, pattern.sub(partial(_replace, replacements), text))


def _replace(replacements: Mapping[str, str], found: re.Match[str]) -> str:
    return replacements[found[0]]


def judge_update(
    arm: str,
    changes: Sequence[Change],
    before: Mapping[str, Answer],
    after: Mapping[str, Answer],
    update: str,
    update_s: float | None,
) -> UpdateFinding:
    """Return how one arm took the changes.

    Args:
        arm: Its name.
        changes: What changed.
        before: Its answers from before, by question id.
        after: Its answers from after.
        update: What was done for it.
        update_s: Seconds that it took.
    """
    right_before = right_after = still_old = 0
    for change in changes:
        old, new = change.question.accept, change.accept
        right_before += _holds(before[change.question.id], old)
        knows = _holds(after[change.question.id], new)
        right_after += knows
        still_old += not knows and _holds(after[change.question.id], old)
    return UpdateFinding(arm, len(changes), right_before, right_after, still_old, update, update_s)


def _holds(answer: Answer, accept: Sequence[str]) -> bool:
    return answer.error is None and holds_any(answer.text, accept)
