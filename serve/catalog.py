"""The catalogue: which names a request's `model` may hold, and what each stands for.

A base model, its adapters (each by its own name `ft:<base>:<owner>:<suffix>:<id>` and by the alias that is its run id),
assistants, the embedder and the reranker. Plain data, so that the routes can list it and the answering can resolve with
it. Does not know how anything is served.
"""

from dataclasses import dataclass, field
from enum import Enum

from core.errors import ModelNotFound
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
    """

    name: str
    kind: EntryKind
    target: str
    created: int
    owner: str = LOCAL
    is_granted: bool = False

    def is_visible(self, owner: str) -> bool:
        """Tell whether an owner may list and use it; models without weights of anybody's own are everybody's."""
        return self.is_granted or self.owner == owner or self.kind not in (EntryKind.ADAPTER, EntryKind.ALIAS)


@dataclass(slots=True)
class Catalog:
    """All names that are served, in the order in which they are listed."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Add a name; the caller has made sure that it is free."""
        self.entries[entry.name] = entry

    def remove(self, name: str) -> None:
        """Take a name out; requests that have found it go on."""
        self.entries.pop(name, None)

    def list_entries(self, owner: str) -> list[Entry]:
        """Return what an owner may use."""
        return [entry for entry in self.entries.values() if entry.is_visible(owner)]

    def get(self, name: str, owner: str) -> Entry:
        """Return what a name stands for.

        Args:
            name: What a request's `model` holds.
            owner: Who asks.

        Raises:
            ModelNotFound: Nothing does, or what does is another's; what the owner may use is listed.
        """
        entry = self.entries.get(name)
        if entry is None or not entry.is_visible(owner):
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
            entry = self.get(entry.target, owner)
        if entry.kind not in CHATTING:
            does = "embeds" if entry.kind is EntryKind.EMBEDDER else "reranks"
            raise ModelNotFound(f"The model {name!r} {does} texts and does not chat.", param="model")
        return entry
