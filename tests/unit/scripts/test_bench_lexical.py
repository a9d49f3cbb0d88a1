"""scripts/bench_lexical.py: the engines that are here find what was added and nothing that was deleted."""

import json
from pathlib import Path

import pytest

from retrieval.stop_words import STOP_WORDS
from scripts import bench_lexical_engines
from scripts.bench_lexical_engines import ENGINES, read_texts

TEXTS = ["the pump leaks", "ducks eat grass", "a duck pond", "clean the filter", "nothing of this"]


@pytest.mark.parametrize("name", ["loam", "fts5"])
def test_an_engine_finds_what_is_there(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name](tmp_path)
    engine.build(TEXTS)
    assert sorted(engine.search("What do ducks eat?")) == [1, 2]
    assert engine.search("ducks eat")[0] == 1
    engine.add(["pumps and ducks", "a wall"])
    assert sorted(engine.search("pump")) == [0, 5]
    engine.delete([1, 5])
    assert engine.search("duck") == [2]
    engine.add(["ducks"])
    assert sorted(engine.search("duck")) == [2, 7]


def test_all_engines_leave_out_the_same_words() -> None:
    assert STOP_WORDS["english"] == bench_lexical_engines.STOP_WORDS


def test_a_stretch_of_the_corpus_is_read(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    assert list(read_texts(corpus, 1, 3)) == TEXTS[1:3]
    assert list(read_texts(corpus, 4, 99)) == TEXTS[4:]
