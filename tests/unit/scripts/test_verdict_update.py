"""scripts.verdict_update: the changed copy of a store differs from it by its facts only."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR, load_config
from core.errors import Conflict, NotFound
from core.layout import DataDir
from retrieval.config import Action, RetrievalConfig, SearchConfig
from retrieval.database import open_database
from retrieval.settings import StoreSettings, save_settings
from retrieval.store import Store, make_store
from scripts.verdict_update import UpdatedStore, copy_settings, list_sync_options, read_store, read_updated
from tests.fakes.hash_embedder import HashEmbedder


def make_stores(data: DataDir, language: str, settings: StoreSettings | None) -> None:
    engine = open_database(data.database)
    identity = HashEmbedder().identity
    save_settings(engine, make_store(engine, "handbuch", identity, language), settings)
    make_store(engine, "handbuch-updated", identity, language)
    engine.dispose()


def read_options(options: list[str]) -> RetrievalConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("retrieval", overrides=options), RetrievalConfig)


def test_the_copy_is_made_with_the_stores_own_language_and_embedder(tmp_path: Path) -> None:
    data, source = DataDir(tmp_path / "it's, data"), tmp_path / "a folder, with [signs]"
    data.root.mkdir()
    make_stores(data, "german", None)
    measured = read_store(data, "handbuch")
    config = read_options(list_sync_options(data, measured, "handbuch-updated", source))
    assert (config.action, config.store, config.source) == (Action.sync, "handbuch-updated", str(source))
    assert (config.language, config.embedder.name) == ("german", measured.embedder.name)
    assert config.paths.data_dir == str(data.root)


@pytest.mark.parametrize("settings", [StoreSettings.of(SearchConfig(dense_weight=0.4), 7), None])
def test_the_copy_is_searched_as_the_store_is(tmp_path: Path, settings: StoreSettings | None) -> None:
    data = DataDir(tmp_path)
    make_stores(data, "english", settings)
    measured = read_store(data, "handbuch")
    copy_settings(data, measured, "handbuch-updated")
    copied: Store = read_store(data, "handbuch-updated")
    assert copied.tuned == measured.tuned
    assert (copied.tuned is None) is (settings is None)


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are no stores yet"):
        read_store(DataDir(tmp_path), "handbuch")


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
