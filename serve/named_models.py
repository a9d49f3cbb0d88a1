"""Names that owners give at run time: an alias of a model, or an assistant over their own stores.

    checked → a row → the catalogue, one name after the other

What stands in the table is served again after a restart. A name is its owner's alone: two owners may give the same one,
and neither learns of the other's. Giving a name again moves it in one step: requests that run end on what they began
with. Does not know HTTP.
"""

import asyncio
import json
import time
from dataclasses import asdict, fields, replace

import sqlalchemy
from sqlalchemy import RowMapping, text

from core.errors import ConfigError, Conflict, NotFound
from retrieval.database import read_transaction, write_transaction
from serve.answering import Assistant, AssistantConfig
from serve.archive import Archive
from serve.catalog import Catalog, Entry, EntryKind

MAX_NAMES = 200
"""Of one owner."""


class NamedModels:
    """The names that owners have given, of one gateway."""

    def __init__(self, archive: Archive, catalog: Catalog) -> None:
        """Begin; `restore` looks at what is there.

        Args:
            archive: The database.
            catalog: Where they are listed.
        """
        self._archive = archive
        self._catalog = catalog
        self._turn = asyncio.Lock()

    def restore(self) -> list[str]:
        """Put what the table has into the catalogue; blocks.

        Returns:
            Which of them lead nowhere now; they lead on when their model is served again.
        """
        lost = []
        for entry in list_named(self._archive.engine):
            self._catalog.give(entry)
            if self._catalog.find_served(entry.target, entry.owner) is None:
                lost.append(f"{entry.kind.value} {entry.name} of {entry.owner}: its model {entry.target} is not served")
        return lost

    def list_names(self, owner: str, kind: EntryKind) -> list[Entry]:
        """Return an owner's names of a kind, the oldest first, those that lead nowhere now among them."""
        return [entry for entry in self._catalog.given.get(owner, {}).values() if entry.kind is kind]

    def is_served(self, entry: Entry) -> bool:
        """Tell whether a name leads to a model that is served now."""
        return self._catalog.find_served(entry.target, entry.owner) is not None

    async def name_model(self, owner: str, name: str, model: str) -> Entry:
        """Let a name stand for a model.

        Args:
            owner: Whose name it is.
            name: What `model` may hold from now on.
            model: A base model, a fine-tuned one, or another alias, whose model is then meant.

        Raises:
            ModelNotFound: The owner may use nothing of that name.
            ConfigError: It is an assistant.
            Conflict: The name is taken, or the owner has given too many.
        """
        target = self._find_target(model, owner)
        return await self._give(Entry(name, EntryKind.ALIAS, target, int(time.time()), owner))

    async def make_assistant(self, owner: str, name: str, config: AssistantConfig) -> Entry:
        """Let a name stand for a model that answers from documents.

        Args:
            owner: Whose name it is.
            name: What `model` may hold from now on.
            config: Its settings; the stores are the owner's.

        Raises:
            ModelNotFound, ConfigError, Conflict: As `name_model`.
        """
        target = self._find_target(config.model, owner)
        assistant = Assistant(name, target, replace(config, model=target), owner)
        return await self._give(Entry(name, EntryKind.ASSISTANT, target, int(time.time()), owner, assistant=assistant))

    def _find_target(self, model: str, owner: str) -> str:
        """Return the own name of the model behind a name: weights that never change."""
        entry = self._catalog.resolve_chat(model, owner)
        if entry.kind is EntryKind.ASSISTANT:
            raise ConfigError(
                f"model: wanted a base model or a fine-tuned one, found the assistant {model!r}.", param="model"
            )
        return entry.target

    async def _give(self, entry: Entry) -> Entry:
        async with self._turn:
            given = self._catalog.given.get(entry.owner, {})
            known = given.get(entry.name)
            if known is not None:
                entry = replace(entry, created=known.created)
            self._check_free(entry, known, len(given))
            await self._archive.run(keep_named, self._archive.engine, entry)
            self._catalog.give(entry)
            return entry

    def _check_free(self, entry: Entry, known: Entry | None, count: int) -> None:
        """Refuse a name that stands for something else, and one too many."""
        served = self._catalog.find_served(entry.name, entry.owner)
        if known is None and served is not None:
            raise Conflict(
                f"name: {entry.name!r} is taken: the {served.kind.value} is called that. Choose another name.",
                param="name",
            )
        if known is not None and known.kind is not entry.kind:
            raise Conflict(
                f"name: {entry.name!r} is your {known.kind.value}. Delete it first, or choose another name.",
                param="name",
            )
        if known is None and count >= MAX_NAMES:
            raise Conflict(f"wanted at most {MAX_NAMES} names, found as many given. Delete one first.", param="name")

    async def take_back(self, owner: str, name: str, kind: EntryKind) -> None:
        """Take a name away; requests that have found it go on.

        Raises:
            NotFound: The owner has given no such name.
        """
        async with self._turn:
            known = self._catalog.given.get(owner, {}).get(name)
            if known is None or known.kind is not kind:
                raise NotFound(f"{kind.value} {name!r}: there is none.", param="name")
            await self._archive.run(remove_named, self._archive.engine, owner, name)
            self._catalog.take_back(name, owner)


def keep_named(engine: sqlalchemy.Engine, entry: Entry) -> None:
    """Write a name, or what it stands for from now on; blocks."""
    statement = text(
        "INSERT INTO named_models (owner, name, kind, model, settings, created_at) "
        "VALUES (:owner, :name, :kind, :model, :settings, :created) "
        "ON CONFLICT (owner, name) DO UPDATE SET model = :model, settings = :settings"
    )
    settings = None
    if entry.assistant is not None:
        settings = {name: value for name, value in asdict(entry.assistant.config).items() if name != "model"}
    row = {
        "owner": entry.owner,
        "name": entry.name,
        "kind": entry.kind.value,
        "model": entry.target,
        "settings": None if settings is None else json.dumps(settings, ensure_ascii=False),
        "created": entry.created,
    }
    with write_transaction(engine) as connection:
        connection.execute(statement, row)


def remove_named(engine: sqlalchemy.Engine, owner: str, name: str) -> None:
    """Remove a name's row; blocks."""
    statement = text("DELETE FROM named_models WHERE owner = :owner AND name = :name")
    with write_transaction(engine) as connection:
        connection.execute(statement, {"owner": owner, "name": name})


def list_named(engine: sqlalchemy.Engine) -> list[Entry]:
    """Return every name that was given, the oldest first; blocks."""
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM named_models ORDER BY number")).mappings()
        return [_to_entry(row) for row in rows]


def _to_entry(row: RowMapping) -> Entry:
    """Return a row as an entry; a setting that this version does not know is left out."""
    assistant = None
    if row["settings"] is not None:
        known = {field.name for field in fields(AssistantConfig)}
        settings = {name: value for name, value in json.loads(row["settings"]).items() if name in known}
        config = AssistantConfig(**{**settings, "model": row["model"]})
        assistant = Assistant(row["name"], row["model"], config, row["owner"])
    kind = EntryKind(row["kind"])
    return Entry(row["name"], kind, row["model"], row["created_at"], row["owner"], assistant=assistant)
