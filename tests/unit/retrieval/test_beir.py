"""A collection is read whole, or refused with every fault's file and line."""

from pathlib import Path

import pytest

from core.errors import InputError, NotFound
from retrieval.beir import read_collection

CORPUS = '{"_id": "a", "title": "Pumps", "text": "Water."}\n{"_id": "b", "text": "Fire."}\n'
QUERIES = '{"_id": "1", "text": "what is wet"}\n{"_id": "2", "text": "nobody knows"}\n'
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n2\tb\t0\n"


def write(folder: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS) -> Path:
    for name, text in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", qrels)):
        (folder / name).write_text(text)
    return folder


def test_a_collection_is_read(tmp_path: Path) -> None:
    collection = read_collection(write(tmp_path))
    assert [(passage.id, passage.title) for passage in collection.passages] == [("a", "Pumps"), ("b", "")]
    assert collection.judged == {"1": {"a": 2.0}, "2": {"b": 0.0}}
    assert collection.labelled_queries() == {"1": "what is wet"}


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(NotFound, match=r"found no qrels\.tsv"):
        read_collection(tmp_path)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, corpus=CORPUS + 'no json\n{"_id": 3, "text": "x"}\n', qrels=QRELS + "1\tc\t1\n1\ta\n")
    with pytest.raises(InputError) as refused:
        read_collection(tmp_path)
    message = refused.value.message
    assert "4 faults" in message
    for part in ("corpus.jsonl, line 3", "corpus.jsonl, line 4", "qrels.tsv, line 4", "qrels.tsv, line 5"):
        assert part in message


def test_an_id_may_stand_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="each _id once"):
        read_collection(write(tmp_path, corpus=CORPUS + CORPUS))


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "\xff"}')
    with pytest.raises(InputError, match="UTF-8"):
        read_collection(tmp_path)
