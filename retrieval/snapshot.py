"""Index snapshots: what a store's chunks look like to search, saved so that opening is quick.

A snapshot lies in indexes/<store_id>/<generation>/ with a manifest of checksums. It is a cache: one that is missing,
damaged or of another generation is made again from the database, never by embedding again. Does not know how scores are
combined.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from core.errors import ContractError, LoamError
from core.failpoints import reach
from core.layout import DataDir, sha256_bytes, sha256_file, write_folder, write_json
from retrieval.config import IndexDevice
from retrieval.dense import DenseIndex, build_dense, load_dense, save_dense
from retrieval.embedding import contextualise
from retrieval.erasure import hold_snapshots, read_erased_generation, remove_snapshots
from retrieval.lexical import LexicalIndex, build_lexical, load_lexical, save_lexical
from retrieval.store import Store, read_chunks

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised when the files or the way words are split change: older snapshots are then made again."""
MANIFEST = "manifest.json"
NUMBERS_FILE = "chunks.npy"


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """All that searching a store needs, of one generation; never changed, only replaced.

    Attributes:
        store: The store as it was then.
        numbers: (chunks,) int64: chunk numbers of the database, rising; a position in the indexes is one in here.
        dense: Vectors; None where there are no chunks.
        lexical: Words.
    """

    store: Store
    numbers: NDArray[np.int64]
    dense: DenseIndex | None
    lexical: LexicalIndex


def open_index(engine: Engine, data: DataDir, store: Store, device: IndexDevice) -> StoreIndex:
    """Return a store's index: its snapshot where that is good, else made from the database and saved."""
    folder = snapshot_folder(data, store)
    index = load_snapshot(folder, store, device)
    if index is None:
        index = build_index(engine, store, device)
        try:
            save_snapshot(index, data)
            remove_snapshots(folder.parent, read_erased_generation(engine, store))  # this one too, if it is late
        except (LoamError, OSError) as error:  # a cache: searching goes on without it
            logger.warning("the index of store %r was not saved: %s", store.name, error)
    return index


def snapshot_folder(data: DataDir, store: Store) -> Path:
    """Where a store's snapshot of its generation lies."""
    return data.indexes / str(store.id) / str(store.generation)


def build_index(engine: Engine, store: Store, device: IndexDevice) -> StoreIndex:
    """Make a store's index from the database, of whatever generation it has now."""
    now, rows = read_chunks(engine, store)
    numbers = np.array([row.id for row in rows], dtype=np.int64)
    lexical = build_lexical([contextualise(row.heading, row.text) for row in rows])
    if not rows:
        return StoreIndex(now, numbers, None, lexical)
    owners = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row.embeddings) for row in rows])
    vectors = np.concatenate([row.embeddings for row in rows])
    return StoreIndex(now, numbers, build_dense(vectors, owners, device), lexical)


def save_snapshot(index: StoreIndex, data: DataDir) -> None:
    """Write a snapshot, whole or not at all, and remove those of earlier generations.

    Raises:
        StorageFull: There is no space; nothing half-written was left.
    """
    folder = snapshot_folder(data, index.store)
    with hold_snapshots(folder.parent, wait=True), write_folder(folder) as temporary:
        np.save(temporary / NUMBERS_FILE, index.numbers, allow_pickle=False)
        if index.dense is not None:
            save_dense(index.dense, temporary)
        save_lexical(index.lexical, temporary)
        reach("snapshot.written")
        content = {
            "format": FORMAT,
            "store_id": index.store.id,
            "generation": index.store.generation,
            "embedder_sha256": index.store.embedder.sha256,
            "chunks": len(index.numbers),
            "files": {path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / MANIFEST, {**content, "sha256": _hash_content(content)})
        reach("snapshot.hashed")
    reach("snapshot.published")
    remove_snapshots(folder.parent, index.store.generation)
    reach("snapshot.pruned")


def load_snapshot(folder: Path, store: Store, device: IndexDevice) -> StoreIndex | None:
    """Return the index in a folder, or None where it is missing, damaged or another store's.

    Every byte is checked against the manifest, and the manifest against its own checksum, before a library reads any.
    """
    if not folder.is_dir():
        return None
    try:
        content = _read_manifest(folder)
        wanted = (FORMAT, store.id, store.generation, store.embedder.sha256)
        found = tuple(content[key] for key in ("format", "store_id", "generation", "embedder_sha256"))
        if found != wanted:
            return None
        for name, digest in content["files"].items():
            if sha256_file(folder / name) != digest:
                raise ContractError(f"{folder / name}: its checksum differs")
        numbers = np.load(folder / NUMBERS_FILE, allow_pickle=False)
        dense = load_dense(folder, device) if len(numbers) else None
        return StoreIndex(store, numbers, dense, load_lexical(folder, len(numbers)))
    except (ContractError, OSError) as error:
        logger.warning("the index of store %r is damaged (%s); it is made again from the database", store.name, error)
        return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return a snapshot's manifest.

    Raises:
        ContractError: It is not what was written.
    """
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ContractError(f"{path}: cannot be read ({error})") from error
    if digest != _hash_content(content):
        raise ContractError(f"{path}: its checksum differs")
    return content


def _hash_content(content: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())
