"""Question sets are BEIR collections with positions for ids."""

from pathlib import Path

import pytest

from core.errors import InputError
from retrieval.question_set import read_question_set
from tests.unit.retrieval.test_beir import write


def test_questions_with_an_answer_are_read(tmp_path: Path) -> None:
    found = read_question_set(write(tmp_path))
    assert found.passages == [("Pumps", "Water."), (None, "Fire.")]
    assert found.questions == ["what is wet"]
    assert found.relevant == [frozenset({0})]


def test_a_set_without_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted questions with relevant passages"):
        read_question_set(write(tmp_path, qrels="query-id\tcorpus-id\tscore\n1\ta\t0\n"))
