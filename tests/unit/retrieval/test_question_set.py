"""Question sets in BEIR's layout are read as they are, and every fault is named by its line."""

from pathlib import Path

import pytest

from core.errors import InvalidFile, NotFound
from retrieval.question_set import read_question_set

CORPUS = '{"_id": "a", "title": "Pump", "text": "It pumps."}\n{"_id": "b", "title": "", "text": "Ducks."}\n'
QUERIES = '{"_id": "1", "text": "what pumps"}\n{"_id": "2", "text": "nobody knows"}\n'
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n1\tgone\t1\n"


def write(folder: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS) -> Path:
    for name, content in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", qrels)):
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_questions_with_an_answer_are_read(tmp_path: Path) -> None:
    found = read_question_set(write(tmp_path))
    assert found.passages == [("Pump", "It pumps."), (None, "Ducks.")]
    assert found.questions == ["what pumps"]
    assert found.relevant == [frozenset({0})]


@pytest.mark.parametrize(
    ("part", "content", "named"),
    [
        ("corpus", '{"_id": "a"\n', r"corpus\.jsonl:1: wanted a JSON object"),
        ("queries", '\n{"_id": 1, "text": "x"}\n', r"queries\.jsonl:2: wanted an object"),
        ("qrels", "1\ta\t1\n1\ta\n", r"qrels\.tsv:2: wanted three columns"),
        ("qrels", "query-id\tcorpus-id\tscore\n1\ta\t0\n", "wanted questions with relevant passages"),
    ],
)
def test_faults_are_named_by_their_line(tmp_path: Path, part: str, content: str, named: str) -> None:
    with pytest.raises(InvalidFile, match=named):
        read_question_set(write(tmp_path, **{part: content}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(NotFound, match=r"missing: qrels\.tsv"):
        read_question_set(tmp_path)
