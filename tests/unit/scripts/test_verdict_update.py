"""scripts.verdict_update: the changed copy of a store differs from it by its facts only."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from sqlalchemy import Engine

from core.config import CONF_DIR, load_config
from core.errors import Conflict, ContractError, NotFound
from core.layout import DataDir
from retrieval.config import Action, ChunkingConfig, ChunkingMode, ParsingConfig, RetrievalConfig, SearchConfig
from retrieval.database import open_database
from retrieval.ingest import ingest, read_recipe, write_recipe
from retrieval.settings import StoreSettings, save_settings
from retrieval.status import list_stores
from retrieval.store import NewDocument, commit_documents, find_store, make_store
from scripts.verdict_plan import VerdictConfig
from scripts.verdict_update import (
    UpdatedStore,
    check_free,
    find_chunking,
    list_sync_options,
    make_copy,
    read_updated,
    update_store,
)
from tests.fakes.hash_embedder import HashEmbedder

SHORT = ChunkingConfig(100, 10, ChunkingMode.static)


def fill(engine: Engine, store: str, chunking: ChunkingConfig, *names: str) -> None:
    """Bring empty documents of some names into a store, as if they had been cut so."""
    recipe = write_recipe(chunking)
    documents = [NewDocument(name, "0" * 64, recipe, 0, "", ()) for name in names]
    commit_documents(engine, make_store(engine, store, HashEmbedder().identity), documents)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(DataDir(tmp_path).database)
    yield engine
    engine.dispose()


def read_options(options: list[str]) -> RetrievalConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("retrieval", overrides=options), RetrievalConfig)


def test_the_copy_is_made_with_the_stores_own_language_embedder_and_chunking(tmp_path: Path) -> None:
    data, source = DataDir(tmp_path / "it's, data"), tmp_path / "a folder, with [signs]"
    data.root.mkdir()
    engine = open_database(data.database)
    measured = make_store(engine, "handbuch", HashEmbedder().identity, "german")
    engine.dispose()
    serve = ["hardware=cpu", "embedder.query_prefix='query: '", "embedder.name=other"]
    config = read_options(list_sync_options(data, measured, SHORT, "handbuch-updated", source, serve))
    assert (config.action, config.store, config.source) == (Action.sync, "handbuch-updated", str(source))
    assert (config.language, config.embedder.name) == ("german", measured.embedder.name)
    assert (config.chunking, config.embedder.query_prefix) == (SHORT, "query: ")
    assert config.paths.data_dir == str(data.root)


def test_how_a_store_was_cut_is_read_from_its_documents(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "a.md").write_text("# Returns\n\nWithin 45 days.\n")
    ingest(
        DataDir(tmp_path), "handbuch", tmp_path / "a.md", embedder=HashEmbedder(), chunking=SHORT,
        parsing=ParsingConfig(),
    )  # fmt: skip
    measured = find_store(engine, "handbuch")
    assert find_chunking(engine, measured) == SHORT
    assert find_chunking(engine, make_store(engine, "empty", measured.embedder)) == ChunkingConfig()
    fill(engine, "handbuch", ChunkingConfig(), "c.md")
    with pytest.raises(Conflict, match="cut alike, found auto 240 32, static 100 10 in handbuch"):
        find_chunking(engine, measured)


@pytest.mark.parametrize("recipe", ["1:240:32", "1:auto:240:32", "4:auto:240:32:25:1024:200", "4:none:240:32", ""])
def test_what_an_earlier_version_has_cut_is_refused(recipe: str) -> None:
    with pytest.raises(ContractError, match="wanted chunks of this version"):
        read_recipe(recipe)


@pytest.mark.parametrize("settings", [StoreSettings.of(SearchConfig(dense_weight=0.4), 7), None])
def test_the_copy_is_searched_as_the_store_is_and_begins_empty(
    tmp_path: Path, engine: Engine, settings: StoreSettings | None
) -> None:
    data = DataDir(tmp_path)
    save_settings(engine, make_store(engine, "handbuch", HashEmbedder().identity, "german"), settings)
    fill(engine, "handbuch-updated", SHORT, "left-by-a-run-that-was-stopped.md")
    measured = find_store(engine, "handbuch")
    make_copy(data, engine, measured, "handbuch-updated")
    copied = find_store(engine, "handbuch-updated")
    assert (copied.tuned, copied.language, copied.embedder) == (measured.tuned, "german", measured.embedder)
    assert (copied.tuned is None) is (settings is None)
    assert [status.files for status in list_stores(engine)] == [0, 0]


def test_a_store_of_that_name_that_is_not_the_reports_own_is_left_alone(tmp_path: Path, engine: Engine) -> None:
    fill(engine, "handbuch", SHORT, "a.md")
    fill(engine, "handbuch-updated", SHORT, "mine.md", "own.md")
    config = VerdictConfig(questions="q.jsonl", store="handbuch", changes="c.jsonl", documents=str(tmp_path / "texts"))
    config.paths.data_dir = str(tmp_path)
    with pytest.raises(Conflict, match="action=delete store=handbuch-updated"):
        update_store(config, tmp_path / "report", [])
    assert [status.files for status in list_stores(engine)] == [1, 2]
    assert not (tmp_path / "report").exists()
    check_free(engine, "another")


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = VerdictConfig(questions="q.jsonl", store="handbuch", changes="c.jsonl", documents=str(tmp_path))
    config.paths.data_dir = str(tmp_path)
    with pytest.raises(NotFound, match="there are no stores yet"):
        update_store(config, tmp_path / "report", [])


def test_a_finished_copy_is_taken_only_for_the_changes_it_was_made_with(tmp_path: Path) -> None:
    record = tmp_path / "updated-store.json"
    facts = [["a.md", "45 days", "60 days"]]
    made = {"store": "handbuch-updated", "ingest_s": 2.0, "sync_s": 0.5}
    record.write_text(json.dumps(made | {"facts": facts}))
    assert read_updated(record, "handbuch-updated", facts) == UpdatedStore("handbuch-updated", 2.0, 0.5)
    for store, other in (("handbuch-updated", [["a.md", "45 days", "70 days"]]), ("manual-updated", facts)):
        with pytest.raises(Conflict, match="found handbuch-updated with others"):
            read_updated(record, store, other)
    record.write_text(json.dumps(made))  # of a version that did not note them
    with pytest.raises(Conflict):
        read_updated(record, "handbuch-updated", facts)
