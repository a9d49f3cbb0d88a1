"""evaluation.questions: a file of questions is read whole, or refused with every fault and its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, NotFound
from evaluation.questions import Kind, Question, parse_question, read_questions, spread, to_row
from tests.conftest import REPO


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_examples_own_questions_are_read() -> None:
    questions = read_questions(REPO / "examples" / "acme" / "questions.jsonl")
    counts = {kind: sum(question.kind is kind for question in questions) for kind in Kind}
    assert counts == {Kind.knowledge: 47, Kind.style: 10, Kind.unanswerable: 10, Kind.changed: 0}
    assert questions[0].files == ("returns-policy.md",)
    assert questions[0].accept == ("45 days",)
    assert questions[0].answers == ("A customer can return a product within 45 days of delivery.",)


def test_singular_and_plural_mean_the_same(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "q.jsonl",
        {"question": "Where?", "answer": "here", "file": "a.md"},
        "",
        {"question": "Where?", "answers": ["here"], "files": ["a.md"]},
    )
    one, two = read_questions(path)
    assert (one.id, two.id) == ("line-1", "line-3")
    assert (one.answers, one.files) == (two.answers, two.files) == (("here",), ("a.md",))


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "q.jsonl",
        {"question": "a", "answer": "b"},
        "{",
        [1],
        {"question": " ", "answer": "b", "kind": "riddle"},
        {"question": "a"},
        {"question": "a", "accept": "b", "regex": "(", "schema": {"type": "text"}},
        {"question": "a", "kind": "unanswerable", "accept": ["b"]},
        {"id": "line-1", "question": "a", "answer": "b"},
        {"question": "a", "answer": "b", "kind": ["style"]},
    )
    with pytest.raises(InputError) as refusal:
        read_questions(path)
    message = refusal.value.message
    for words in (
        "line 2: wanted a JSON object",
        "line 3: wanted a JSON object, found list",
        "line 4: kind: wanted one of knowledge, style, unanswerable, changed, fact, multi-hop; found 'riddle'",
        "line 4: question: wanted text",
        "line 5: wanted at least one of answer",
        "line 6: accept: wanted a list of texts",
        "line 6: regex: wanted a regular expression",
        "line 6: schema: wanted a JSON schema",
        "line 7: accept: an unanswerable question has no right answer",
        "line 8: id: 'line-1' stands on an earlier line",
        "line 9: kind: wanted one of knowledge, style, unanswerable, changed, fact, multi-hop; found ['style']",
    ):
        assert words in message


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_questions_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(InputError, match="at least one question"):
        read_questions(tmp_path / "q.jsonl")


def test_a_missing_file_and_other_bytes_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(InputError, match="UTF-8"):
        read_questions(tmp_path / "q.jsonl")


def test_a_question_becomes_the_row_that_it_came_from() -> None:
    row = {
        "id": "q1",
        "question": "Which two?",
        "kind": "multi-hop",
        "answers": ["a and b"],
        "accept": ["a"],
        "files": ["a.md", "b.md"],
        "chunks": ["chunk-1"],
        "passages": ["a is one"],
        "regex": "^a",
        "schema": {"type": "object"},
    }
    question = parse_question(row, "x")
    assert (question.kind, question.label) == (Kind.knowledge, "multi-hop")
    assert to_row(question) == row
    assert parse_question(to_row(question), "x") == question


def test_a_limit_takes_from_the_whole_file() -> None:
    questions = [Question(str(number), "?", answers=("a",)) for number in range(10)]
    assert [question.id for question in spread(questions, 3)] == ["0", "3", "6"]
    assert spread(questions, 10) == spread(questions, None) == questions
