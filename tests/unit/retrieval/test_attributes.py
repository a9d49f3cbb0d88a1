"""Attributes come from the file, its front matter and people, and follow OpenAI's limits."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from core.layout import DataDir
from retrieval.attributes import check_attributes, fit_attributes
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.loaders.front_matter import parse_front_matter
from retrieval.store import find_store
from retrieval.sync import sync
from tests.fakes.attributes import set_attributes
from tests.fakes.hash_embedder import HashEmbedder

PAGE = """---
title: Leave
team: people
year: 2024
is_public: yes
reviewed: 2024-03-01
tags: [leave, sick, 3]
nested: {a: 1}
---
# Leave

Take it.
"""
STATED = {"title": "Leave", "team": "people", "year": 2024, "is_public": True, "reviewed": "2024-03-01"}


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def bring_in(data: DataDir, source: Path) -> dict[str, dict[str, Any]]:
    """Sync; return every document's attributes."""
    sync(
        data,
        "acme",
        source,
        embedder=HashEmbedder(),
        chunking=ChunkingConfig(60, overlap_tokens=16),
        parsing=ParsingConfig(),
    )
    engine = open_database(data.database)
    found = {state.file: state.attributes for state in list_documents(engine, find_store(engine, "acme"))}
    engine.dispose()
    return found


def test_attributes_come_from_file_front_matter_and_people(data: DataDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "hr").mkdir(parents=True)
    page = source / "hr" / "leave.md"
    page.write_text(PAGE)
    os.utime(page, (1_700_000_000, 1_700_000_000))
    of_file = {"path": "hr/leave.md", "folder": "hr", "extension": ".md", "size": len(PAGE), "modified": 1_700_000_000}
    stated = {**STATED, "tags": "leave, sick, 3"}
    assert bring_in(data, source) == {"hr/leave.md": {**of_file, **stated}}

    engine = open_database(data.database)
    acme = find_store(engine, "acme")
    set_attributes(engine, acme, "hr/leave.md", {"team": "hr"})
    assert list_documents(engine, acme)[0].attributes["team"] == "hr"
    assert find_store(engine, "acme").generation == acme.generation

    page.write_text(PAGE.replace("2024\n", "2025\n").replace("it.", "them."))  # what people set outlives a new version
    os.utime(page, (1_700_000_001, 1_700_000_001))
    found = bring_in(data, source)["hr/leave.md"]
    assert (found["team"], found["year"], found["modified"]) == ("hr", 2025, 1_700_000_001)

    (source / "people").mkdir()
    page.rename(source / "people" / "absence.md")
    found = bring_in(data, source)["people/absence.md"]
    assert (found["team"], found["folder"], found["path"]) == ("hr", "people", "people/absence.md")
    set_attributes(engine, acme, "people/absence.md", {})
    assert list_documents(engine, acme)[0].attributes["team"] == "people"

    os.utime(source / "people" / "absence.md", (1_700_000_009, 1_700_000_009))
    assert bring_in(data, source)["people/absence.md"]["modified"] == 1_700_000_009
    engine.dispose()


@pytest.mark.parametrize(
    ("values", "faults"),
    [
        ({str(number): 1 for number in range(17)}, ["wanted at most 16 pairs, found 17"]),
        ({"": 1, "k" * 65: 1}, ["key '': wanted 1 to 64 characters", "key 'kkk"]),
        ({"a": "x" * 513, "b": None, "c": []}, ["a: wanted at most 512", "b: wanted a string", "found list"]),
        ({"a": float("inf"), "b": 2**54, "c": "\udc00"}, ["a: wanted a finite", "b: wanted -2**53", "c: wanted text"]),
    ],
)
def test_attributes_beyond_the_limits_are_refused_with_every_fault(values: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_attributes(values)
    for fault in faults:
        assert fault in caught.value.message


@given(st.dictionaries(st.text(max_size=70), st.one_of(st.text(max_size=600), st.integers(), st.floats(), st.none())))
def test_what_a_document_states_is_made_to_fit(values: dict[str, Any]) -> None:
    fitted = fit_attributes(values)
    assert check_attributes(fitted) == fitted
    assert fitted.keys() <= values.keys()


@pytest.mark.parametrize(
    "front",
    [
        "a: [",
        "- a list",
        "a: &a [1]\nb: *a",
        "a: !!python/object/apply:os.getcwd []",
        "a: 2024-13-45",
        "x: " + "[" * 5000,
        "x: " + "[" * 60_000,
        'x: "\\UFFFFFFFF"',
        f"0x{'f' * 10_000}: x",
        f"x: 0x{'f' * 10_000}",
        "k: v\n" * 20_000,
        "\x00",
    ],
)
def test_front_matter_that_cannot_be_read_states_nothing(front: str) -> None:
    assert parse_front_matter(front) == {}
