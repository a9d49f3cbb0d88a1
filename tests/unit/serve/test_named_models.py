"""Names that owners give: rows and catalogue agree, a name is its owner's alone, what is taken is refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigError, Conflict, LoamError, ModelNotFound, NotFound
from core.layout import DataDir
from serve import named_models
from serve.answering import AssistantConfig
from serve.archive import Archive
from serve.catalog import Catalog, Entry, EntryKind
from serve.named_models import NamedModels

BASE, ADAPTER, NEWER, FOREIGN = "base", "ft:base:sales:a:1", "ft:base:sales:a:2", "ft:base:hr:a:3"


def make_catalog() -> Catalog:
    catalog = Catalog()
    catalog.add(Entry(BASE, EntryKind.BASE, BASE, 1))
    for name, owner in ((ADAPTER, "sales"), (NEWER, "sales"), (FOREIGN, "hr")):
        catalog.add(Entry(name, EntryKind.ADAPTER, name, 1, owner))
    catalog.add(Entry("ft:base:sales:a", EntryKind.ALIAS, NEWER, 1, "sales"))
    catalog.add(Entry("embedder", EntryKind.EMBEDDER, "embedder", 1))
    catalog.add(Entry("mine", EntryKind.ALIAS, BASE, 1, "local"))
    return catalog


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(DataDir(tmp_path), 1)
    yield opened
    opened.close()


def give(archive: Archive, catalog: Catalog, owner: str, name: str, model: str) -> Entry:
    return asyncio.run(NamedModels(archive, catalog).name_model(owner, name, model))


def test_a_name_is_listed_at_once_and_after_a_restart(archive: Archive) -> None:
    catalog, config = make_catalog(), AssistantConfig(ADAPTER, ["vs_1"], k=5, instructions="Be «brief».")
    given = give(archive, catalog, "sales", "prod", ADAPTER)
    made = asyncio.run(NamedModels(archive, catalog).make_assistant("sales", "desk", config))
    assert (given.target, made.target) == (ADAPTER, ADAPTER)
    again = make_catalog()
    assert NamedModels(archive, again).restore() == []
    assert again.given == catalog.given
    assert catalog.resolve_chat("prod", "sales").name == ADAPTER
    desk = again.resolve_chat("desk", "sales").assistant
    assert desk is not None
    assert (desk.config, desk.engine_model, desk.owner) == (config, ADAPTER, "sales")
    assert [entry.name for entry in again.list_entries("sales")][-2:] == ["prod", "desk"]


def test_a_name_moves_and_what_was_found_before_stays(archive: Archive) -> None:
    catalog = make_catalog()
    first = give(archive, catalog, "sales", "prod", ADAPTER)
    found = catalog.resolve_chat("prod", "sales")
    moved = give(archive, catalog, "sales", "prod", "ft:base:sales:a")
    assert (found.name, moved.target, moved.created) == (ADAPTER, NEWER, first.created)
    again = make_catalog()
    NamedModels(archive, again).restore()
    assert again.resolve_chat("prod", "sales").name == NEWER


def test_two_owners_give_one_name_and_see_their_own(archive: Archive) -> None:
    catalog = make_catalog()
    give(archive, catalog, "sales", "prod", ADAPTER)
    assert catalog.find("prod", "hr") is None
    give(archive, catalog, "hr", "prod", FOREIGN)
    assert [catalog.resolve_chat("prod", owner).name for owner in ("sales", "hr")] == [ADAPTER, FOREIGN]
    give(archive, catalog, "hr", "mine", FOREIGN)  # the command line's alias is none of theirs
    assert catalog.resolve_chat("mine", "hr").name == FOREIGN
    assert catalog.resolve_chat("mine", "local").name == BASE
    asyncio.run(NamedModels(archive, catalog).take_back("hr", "prod", EntryKind.ALIAS))
    assert catalog.resolve_chat("prod", "sales").name == ADAPTER


@pytest.mark.parametrize(
    ("name", "model", "kind"),
    [
        ("prod", "nothing", ModelNotFound), ("prod", FOREIGN, ModelNotFound), ("prod", "embedder", ModelNotFound),
        (BASE, ADAPTER, Conflict), ("embedder", ADAPTER, Conflict), ("prod", "desk", ConfigError),
        ("desk", ADAPTER, Conflict),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(archive: Archive, name: str, model: str, kind: type[LoamError]) -> None:
    catalog = make_catalog()
    asyncio.run(NamedModels(archive, catalog).make_assistant("sales", "desk", AssistantConfig(BASE, ["vs_1"])))
    before = dict(catalog.given["sales"])
    with pytest.raises(kind):
        give(archive, catalog, "sales", name, model)
    assert catalog.given["sales"] == before
    assert [entry.name for entry in named_models.list_named(archive.engine)] == ["desk"]


def test_a_name_whose_model_is_gone_leads_nowhere_and_is_kept(archive: Archive) -> None:
    give(archive, make_catalog(), "sales", "prod", ADAPTER)
    catalog = make_catalog()
    catalog.remove(ADAPTER)
    names = NamedModels(archive, catalog)
    assert names.restore() == [f"alias prod of sales: its model {ADAPTER} is not served"]
    assert "prod" not in {entry.name for entry in catalog.list_entries("sales")}
    with pytest.raises(ModelNotFound):
        catalog.resolve_chat("prod", "sales")
    (kept,) = names.list_names("sales", EntryKind.ALIAS)
    assert not names.is_served(kept)
    catalog.add(Entry(ADAPTER, EntryKind.ADAPTER, ADAPTER, 1, "sales"))
    assert catalog.resolve_chat("prod", "sales").name == ADAPTER


def test_a_grant_that_ends_takes_the_name_with_it(archive: Archive) -> None:
    catalog = make_catalog()
    catalog.add(Entry("ft:base:local:x:9", EntryKind.ADAPTER, "ft:base:local:x:9", 1, is_granted=True))
    give(archive, catalog, "sales", "prod", "ft:base:local:x:9")
    assert catalog.resolve_chat("prod", "sales").name == "ft:base:local:x:9"
    catalog.add(Entry("ft:base:local:x:9", EntryKind.ADAPTER, "ft:base:local:x:9", 1))
    with pytest.raises(ModelNotFound):
        catalog.resolve_chat("prod", "sales")


def test_only_what_was_given_is_taken_back(archive: Archive) -> None:
    catalog = make_catalog()
    give(archive, catalog, "sales", "prod", ADAPTER)
    names = NamedModels(archive, catalog)
    for owner, name, kind in (
        ("hr", "prod", EntryKind.ALIAS), ("sales", "prod", EntryKind.ASSISTANT), ("sales", BASE, EntryKind.ALIAS),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            asyncio.run(names.take_back(owner, name, kind))
    asyncio.run(names.take_back("sales", "prod", EntryKind.ALIAS))
    assert catalog.find("prod", "sales") is None
    assert named_models.list_named(archive.engine) == []


def test_an_owner_gives_so_many_names(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_models, "MAX_NAMES", 2)
    catalog = make_catalog()
    for name in ("a", "b", "b"):
        give(archive, catalog, "sales", name, BASE)
    with pytest.raises(Conflict, match="at most 2"):
        give(archive, catalog, "sales", "c", BASE)
    assert give(archive, catalog, "hr", "c", BASE).target == BASE


def test_who_uses_a_model_is_known(archive: Archive) -> None:
    catalog = make_catalog()
    give(archive, catalog, "sales", "prod", ADAPTER)
    assert [entry.name for entry in catalog.list_users(ADAPTER)] == ["prod"]
    assert catalog.list_users(NEWER) == []
