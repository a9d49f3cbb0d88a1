"""Changes are checked against documents and questions, made in a copy, and judged by the old and the new fact."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, NotFound
from evaluation.questions import Kind, Question, read_questions
from evaluation.updates import apply_changes, copy_documents, judge_update, read_changes
from tests.fakes.saved_answers import make_answer

ACME = Path(__file__).resolve().parents[3] / "examples" / "acme"
QUESTIONS = {"days": Question("days", "How many days?", accept=("45 days",)), "bare": Question("bare", "?", regex="x")}
ROW = {
    "question": "days",
    "file": "returns.md",
    "find": "within 45 days",
    "replace": "within 60 days",
    "accept": ["60 days"],
}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with one document and one that is no text."""
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "returns.md").write_text("Goods come back within 45 days. Business: 45 days, too.")
    (folder / "scan.pdf").write_bytes(b"%PDF\xff\xfe")
    (tmp_path / "secret.md").write_text("within 45 days")
    return folder


def write_changes(folder: Path, *rows: Any) -> Path:
    path = folder / "changes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_example_has_ten_changes_that_can_be_made(tmp_path: Path) -> None:
    questions = {one.id: one for one in read_questions(ACME / "questions.jsonl")}
    changes = read_changes(ACME / "changes.jsonl", questions, ACME / "documents")
    assert len(changes) == 10
    copy_documents(ACME / "documents", tmp_path / "copy")
    apply_changes(tmp_path / "copy", changes)
    apply_changes(tmp_path / "copy", changes)  # made already
    for change in changes:
        text = (tmp_path / "copy" / change.file).read_text()
        assert change.replace in text
        assert change.find not in text
        assert change.find in (ACME / "documents" / change.file).read_text()
        assert any(accept in change.replace for accept in change.accept)
        assert change.question_after.kind is Kind.changed
        assert change.question_after.accept == change.accept


def test_faults_are_named_together_by_line(tmp_path: Path, documents: Path) -> None:
    rows = [
        ROW,
        {**ROW, "question": "none"},
        {**ROW, "question": "bare"},
        {**ROW, "file": "absent.md"},
        {**ROW, "file": "../secret.md"},
        {**ROW, "file": "scan.pdf"},
        {**ROW, "file": "returns.md\0"},
        {**ROW, "find": "45 days"},
        {**ROW, "accept": []},
        [1],
    ]
    with pytest.raises(InputError) as refusal:
        read_changes(write_changes(tmp_path, *rows), QUESTIONS, documents)
    said = refusal.value.message
    for words in (
        "9 faults",
        "line 2: question: no question has the id 'none'",
        "line 3: question: bare has no `accept`",
        "line 4: file: no document absent.md",
        "line 5: file: no document ../secret.md",
        "line 6: file: scan.pdf is not plain text",
        "line 7: file: no document returns.md\0 in",
        "line 8: find: wanted '45 days' once in returns.md, found it 2 times",
        "line 9: wanted question, file, find",
        "line 10: wanted question, file, find",
    ):
        assert words in said
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        read_changes(tmp_path / "none.jsonl", QUESTIONS, documents)


def test_facts_that_change_places_are_both_changed(tmp_path: Path, documents: Path) -> None:
    (documents / "returns.md").write_text("Goods: 45 days. Business: 90 days. Gifts: 10 days.")
    facts = {"45 days": "90 days", "90 days": "45 days", "10 days": "10 days, or 45 days"}
    rows = [{**ROW, "find": find, "replace": replace} for find, replace in facts.items()]
    changes = read_changes(write_changes(tmp_path, *rows, rows[0]), QUESTIONS, documents)
    apply_changes(documents, changes)
    text = "Goods: 90 days. Business: 45 days. Gifts: 10 days, or 45 days."
    assert (documents / "returns.md").read_text() == text
    (documents / "returns.md").write_text("within 45 days or so")
    overlapping = write_changes(tmp_path, ROW, {**ROW, "find": "45 days or"})
    with pytest.raises(InputError, match="line 2: find: '45 days or' overlaps 'within 45 days', which changes, too"):
        read_changes(overlapping, QUESTIONS, documents)


def test_a_file_of_changes_is_read_as_a_file_of_questions_is(tmp_path: Path, documents: Path) -> None:
    path = tmp_path / "changes.jsonl"
    row = {**ROW, "replace": "within 60\u2028days"}  # a line end to Python, and none to JSON
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\n")
    assert [change.replace for change in read_changes(path, QUESTIONS, documents)] == [row["replace"]]
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="wanted UTF-8 text"):
        read_changes(path, QUESTIONS, documents)


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("It is 45 days.", "It is 60 days. [1]", (1, 1, 0)),
        ("It is 45 days.", "It is 45 days.", (1, 0, 1)),
        ("Ask the desk.", "60 days, not 45 days.", (0, 1, 0)),
        ("145 days", "160 days", (0, 0, 0)),
    ],
)
def test_old_and_new_facts_are_told_apart(
    tmp_path: Path, documents: Path, before: str, after: str, wanted: tuple[int, int, int]
) -> None:
    changes = read_changes(write_changes(tmp_path, ROW), QUESTIONS, documents)
    answers = [
        {"days": make_answer(QUESTIONS["days"], "rag", is_right=False, text=text)} if text else {}
        for text in (before, after)
    ]
    found = judge_update("rag", changes, answers[0], answers[1], "ingested again", 2.5)
    assert (found.right_before, found.right_after, found.still_old) == wanted
    assert (found.n, found.update_s) == (1, 2.5)
