"""The two public sets: three hundred questions whose gold is in its document, and none of them in the training file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.errors import NotFound
from evaluation.matching import holds_text
from evaluation.questions import Kind, read_questions
from scripts.make_verdict_sets import (
    CLOSED_BOOK_ROWS,
    MIXED_ANSWERABLE,
    MIXED_UNANSWERABLE,
    OPEN_BOOK_ROWS,
    VALID_ROWS,
    make_intents,
    make_squad,
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_squad_keeps_its_questions_out_of_training(shared_data: Path, tmp_path: Path) -> None:
    make_squad(shared_data, tmp_path)
    questions = read_questions(tmp_path / "questions.jsonl")
    assert len({one.id for one in questions}) == 300
    texts = {path.name: path.read_text() for path in (tmp_path / "documents").iterdir()}
    assert len(texts) == 1064
    assert all(any(holds_text(texts[one.files[0]], gold) for gold in one.accept) for one in questions)
    train, valid = read_rows(tmp_path / "train.jsonl"), read_rows(tmp_path / "valid.jsonl")
    assert (len(train), len(valid)) == (OPEN_BOOK_ROWS + CLOSED_BOOK_ROWS, VALID_ROWS)
    asked = {one.question.casefold() for one in questions}
    learned = {row["messages"][-2]["content"].casefold() for row in [*train, *valid]}
    assert not asked & learned
    mixed = read_questions(tmp_path / "mixed_questions.jsonl")
    assert Counter(one.kind for one in mixed) == {
        Kind.knowledge: MIXED_ANSWERABLE,
        Kind.unanswerable: MIXED_UNANSWERABLE,
    }
    assert not {one.question.casefold() for one in mixed} & learned
    reading = read_questions(tmp_path / "raft_questions.jsonl")
    assert all(any(holds_text(texts[one.files[0]], gold) for gold in one.accept) for one in reading)
    assert not asked & {one.question.casefold() for one in reading}
    shown = [row["messages"] for row in train if row["messages"][0]["role"] == "system"]
    assert 200 <= len(shown) <= 280
    assert {chat[1]["content"] for chat in shown} == {one.question for one in reading}
    assert all(chat[-1]["content"].casefold() in chat[0]["content"].casefold() for chat in shown)
    assert all(chat[0]["content"].count("\n\nDocument: ") == 3 for chat in shown)


def test_intents_have_a_document_a_label_and_a_strict_pattern(shared_data: Path, tmp_path: Path) -> None:
    make_intents(shared_data, tmp_path)
    questions = read_questions(tmp_path / "questions.jsonl")
    assert len(questions) == 300
    assert len(list((tmp_path / "documents").iterdir())) == 77
    assert len({one.answers[0] for one in questions}) == 77
    train = read_rows(tmp_path / "train.jsonl")
    assert not {one.question for one in questions} & {row["text"] for row in train}
    assert sum(path.read_text().count("\nIntent: ") for path in (tmp_path / "documents").iterdir()) == len(train)
    assert set((tmp_path / "long_instructions.txt").read_text().splitlines()[1:]) == {row["label"] for row in train}


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="intents_train"):
        make_intents(tmp_path, tmp_path / "out")
