"""The catalogue: which names a request's `model` may hold, and what each stands for.

A base model, its adapters (each by its own name `ft:<base>:<owner>:<suffix>:<id>` and by the alias that is its run id),
assistants, the embedder and the reranker; and the names that owners have given, which they alone see. Plain data, so
that the routes can list it and the answering can resolve with it. Does not know how anything is served.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from core.errors import ModelNotFound
from serve.answering import Assistant
from serve.owners import LOCAL


class EntryKind(Enum):
    """What a name stands for."""

    BASE = "base"
    ADAPTER = "adapter"
    ALIAS = "alias"
    ASSISTANT = "assistant"
    EMBEDDER = "embedder"
    RERANKER = "reranker"


CHATTING = frozenset({EntryKind.BASE, EntryKind.ADAPTER, EntryKind.ALIAS, EntryKind.ASSISTANT})
"""Kinds that answer chats; the others only help to find something."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in /v1/models.

    Attributes:
        name: What a request's `model` holds.
        kind: What it stands for.
        target: For an alias the adapter's own name, for an assistant its model's; else the name itself.
        created: Unix seconds.
        owner: Who made it.
        is_granted: Whether every owner may use it.
        assistant: What answers, where it is one.
    """

    name: str
    kind: EntryKind
    target: str
    created: int
    owner: str = LOCAL
    is_granted: bool = False
    assistant: Assistant | None = None

    def is_visible(self, owner: str) -> bool:
        """Tell whether an owner may list and use it; models without weights of anybody's own are everybody's."""
        return self.is_granted or self.owner == owner or self.kind not in (EntryKind.ADAPTER, EntryKind.ALIAS)


@dataclass(slots=True)
class Catalog:
    """All names that are served, in the order in which they are listed.

    Attributes:
        entries: What the operator, the training runs and the jobs have made, by name.
        given: What owners have named at run time, by owner and name; two owners may give one name.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    given: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Add a name; the caller has made sure that it is free."""
        self.entries[entry.name] = entry

    def remove(self, name: str) -> None:
        """Take a name out; requests that have found it go on."""
        self.entries.pop(name, None)

    def give(self, entry: Entry) -> None:
        """Add a name of its owner's, or move it in one step; requests that have found it end on what they found."""
        self.given.setdefault(entry.owner, {})[entry.name] = entry

    def take_back(self, name: str, owner: str) -> None:
        """Take a name of an owner's out."""
        self.given.get(owner, {}).pop(name, None)

    def list_given(self, owner: str) -> Iterator[Entry]:
        """Yield the names that an owner has given and that lead to a model which is served now."""
        return (entry for entry in self.given.get(owner, {}).values() if self.find_served(entry.target, owner))

    def list_entries(self, owner: str) -> list[Entry]:
        """Return what an owner may use."""
        given = {entry.name: entry for entry in self.list_given(owner)}
        visible = [entry for entry in self.entries.values() if entry.is_visible(owner) and entry.name not in given]
        return [*visible, *given.values()]

    def find(self, name: str, owner: str) -> Entry | None:
        """Return what a name stands for to an owner, whose own names come first; None: nothing."""
        given = self.given.get(owner, {}).get(name)
        if given is not None and self.find_served(given.target, owner):
            return given
        return self.find_served(name, owner)

    def find_served(self, name: str, owner: str) -> Entry | None:
        """Return what a name stands for that no owner has given; None: nothing that the owner may use."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry.is_visible(owner) else None

    def get(self, name: str, owner: str) -> Entry:
        """Return what a name stands for.

        Args:
            name: What a request's `model` holds.
            owner: Who asks.

        Raises:
            ModelNotFound: Nothing does, or what does is another's; what the owner may use is listed.
        """
        entry = self.find(name, owner)
        if entry is None:
            served = ", ".join(entry.name for entry in self.list_entries(owner))
            raise ModelNotFound(f"The model {name!r} does not exist. Served here: {served}.", param="model")
        return entry

    def resolve_chat(self, name: str, owner: str) -> Entry:
        """Return what answers an owner's chat under a name: a base model, an adapter or an assistant.

        Raises:
            ModelNotFound: Nothing has that name, or what has it does not chat.
        """
        entry = self.get(name, owner)
        if entry.kind is EntryKind.ALIAS:
            entry = self.find_served(entry.target, owner) or self.get(entry.target, owner)
        if entry.kind not in CHATTING:
            does = "embeds" if entry.kind is EntryKind.EMBEDDER else "reranks"
            raise ModelNotFound(f"The model {name!r} {does} texts and does not chat.", param="model")
        return entry

    def list_users(self, target: str) -> list[Entry]:
        """Return the assistants, and the names that owners have given, which lead to a model."""
        given = [entry for names in self.given.values() for entry in names.values() if entry.target == target]
        assistants = [entry for entry in self.entries.values() if entry.kind is EntryKind.ASSISTANT]
        return [*(entry for entry in assistants if entry.target == target), *given]
