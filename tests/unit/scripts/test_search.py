"""scripts/search.py: what the command line says reaches the search as it was typed."""

import sys

import pytest

from retrieval.config import RetrievalConfig
from scripts import search


@pytest.mark.parametrize("folder", ["data", "/a b/c", "x, (y)/it's", "[z]=1", "null", "a\\"])
def test_any_data_directory_can_be_named(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    seen: list[tuple[str, str, str]] = []

    def show(config: RetrievalConfig, store: str, text: str) -> None:
        seen.append((config.paths.data_dir, store, text))

    monkeypatch.setattr(search, "search_and_show", show)
    monkeypatch.setattr(search, "configure_logging", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["search.py", "acme", "how", "long?", "--data-dir", folder])
    search.main()
    assert seen == [(folder, "acme", "how long?")]
