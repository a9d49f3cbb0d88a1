"""retrieval/run.py: what is chosen before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import Conflict, NotFound
from core.layout import DataDir
from retrieval.config import RetrievalConfig
from retrieval.database import open_database
from retrieval.run import choose_language
from retrieval.store import make_store
from tests.fakes.hash_embedder import HashEmbedder


def make_config(root: Path, **values: Any) -> RetrievalConfig:
    config = RetrievalConfig(**values)
    config.paths.data_dir = str(root)
    return config


def test_a_training_takes_the_language_of_the_store_that_it_is_for(tmp_path: Path) -> None:
    engine = open_database(DataDir(tmp_path).database)
    make_store(engine, "handbuch", HashEmbedder().identity, "german")
    engine.dispose()
    assert choose_language(make_config(tmp_path)) == "english"
    assert choose_language(make_config(tmp_path, language="french")) == "french"
    assert choose_language(make_config(tmp_path, store="handbuch")) == "german"
    assert choose_language(make_config(tmp_path, store="handbuch", language="german")) == "german"
    with pytest.raises(Conflict, match="stemmed as german, found language=french"):
        choose_language(make_config(tmp_path, store="handbuch", language="french"))
    with pytest.raises(NotFound, match="wanted one of handbuch"):
        choose_language(make_config(tmp_path, store="other"))
