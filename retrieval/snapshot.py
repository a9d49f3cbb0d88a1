"""Index snapshots: what a store's chunks look like to search, saved so that opening is quick.

A snapshot lies in indexes/<store_id>/<generation>/ with a manifest of checksums. It is a cache: one of an earlier
generation takes in what has changed since, one that is missing or damaged (nothing waits until it is on disk) is made
again from the database, never by embedding again. A new snapshot links to the files of those runs that have not
changed, and holds nothing of chunks that have gone. Does not know how scores are combined.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from core.errors import ContractError, LoamError
from core.failpoints import reach
from core.layout import DataDir, read_sealed_json, sha256_file, write_folder, write_sealed_json
from retrieval.approximate import ARRAYS as LIST_ARRAYS
from retrieval.approximate import VectorLists
from retrieval.changes import read_changes
from retrieval.config import IndexDevice
from retrieval.dense import DenseIndex, make_dense, make_run
from retrieval.erasure import hold_snapshots, read_erased_generation, remove_snapshots
from retrieval.lexical import LexicalIndex, make_lexical
from retrieval.postings import ARRAYS, Postings
from retrieval.runs import ChunkRun, SavedRun, build_chunk_run, join_all, join_runs, list_run
from retrieval.spans import SpanRun
from retrieval.spill import release
from retrieval.store import Store

logger = logging.getLogger(__name__)

FORMAT = 6
"""Raised when the files or the way words are split change: older snapshots are then made again."""
MANIFEST = "manifest.json"
PARTS = ("numbers", "vectors", "owners", "spans", "span_lengths", "span_firsts", *ARRAYS)
"""Arrays of a run, each a file of its own."""
LIST_PARTS = {f"list_{name}": name for name in LIST_ARRAYS}
"""Those of a long run's lists, by the name of the file."""
MAPPED_FROM_BYTES = 64 * 2**20
"""Files from this size on are mapped rather than read: opening is quick, and the system may take the memory back."""
JOINED_AT_ONCE = 20_000
"""Longest run, in chunks, that is made while a search waits for it."""


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """All that searching a store needs, of one generation; never changed, only replaced.

    Attributes:
        store: The store as it was then.
        runs: What it is made of, the oldest first.
        slots: (positions,) int64: chunk number at each position of the indexes, rising.
        live: (positions,) bool: which of these chunks are still there; None: all.
        last: The largest chunk number that it has seen.
        dense: Vectors; None where there are no chunks.
        lexical: Words.
    """

    store: Store
    runs: tuple[ChunkRun, ...]
    slots: NDArray[np.int64]
    live: NDArray[np.bool_] | None
    last: int
    dense: DenseIndex | None
    lexical: LexicalIndex

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Chunk numbers that can be found, (chunks,) int64, rising."""
        return self.slots if self.live is None else self.slots[self.live]


def open_index(engine: Engine, data: DataDir, store: Store, device: IndexDevice) -> StoreIndex:
    """Return a store's index: its snapshot, or an earlier one with what has changed, or made from the database.

    What was not a snapshot of this generation is saved as one.
    """
    folder = snapshot_folder(data, store)
    index = load_snapshot(folder, store, device)
    if index is not None:
        return index
    earlier = _load_earlier(folder, store, device)
    if earlier is None:
        index = build_index(engine, store, device)
    else:
        index = compact_index(update_index(engine, earlier, device), device)
    try:
        index = save_snapshot(index, data)
        remove_snapshots(folder.parent, read_erased_generation(engine, store))  # this one too, if it is late
    except (LoamError, OSError) as error:  # a cache: searching goes on without it
        logger.warning("the index of store %r was not saved: %s", store.name, error)
    return index


def _load_earlier(folder: Path, store: Store, device: IndexDevice) -> StoreIndex | None:
    """Return the newest good snapshot of an earlier generation."""
    try:
        generations = [int(other.name) for other in folder.parent.iterdir() if other.name.isdigit()]
    except OSError:
        return None
    for generation in sorted(generations, reverse=True):
        if generation < store.generation:
            index = load_snapshot(folder.with_name(str(generation)), replace(store, generation=generation), device)
            if index is not None:
                return index
    return None


def snapshot_folder(data: DataDir, store: Store) -> Path:
    """Where a store's snapshot of its generation lies."""
    return data.indexes / str(store.id) / str(store.generation)


def ensure_snapshot(engine: Engine, data: DataDir, store: Store) -> None:
    """Bring a store's snapshot to its generation; one that is there is not opened: whoever searches checks it."""
    if not snapshot_folder(data, store).is_dir():
        open_index(engine, data, store, IndexDevice.cpu)


def build_index(engine: Engine, store: Store, device: IndexDevice) -> StoreIndex:
    """Make a store's index from the database, of whatever generation it has now."""
    nothing = np.zeros(0, dtype=np.int64)
    runs: list[ChunkRun] = []
    changes = read_changes(
        engine, store, nothing, 0, lambda rows: runs.append(build_chunk_run(rows, IndexDevice.cpu, store.language))
    )
    runs = [list_run(run) for run in join_all(runs, device)]
    return make_index(changes.store, runs, np.ones(sum(len(run.numbers) for run in runs), dtype=np.bool_), changes.last)


def make_index(store: Store, runs: list[ChunkRun], live: NDArray[np.bool_], last: int) -> StoreIndex:
    """Put runs together.

    Args:
        store: The store, of the generation that they reflect.
        runs: The oldest first.
        live: (positions,) bool: which of their chunks are still there.
        last: The largest chunk number that the store has ever had.
    """
    slots = np.concatenate([np.zeros(0, dtype=np.int64), *(run.numbers for run in runs)])
    mask = None if live.all() else live
    dense = make_dense([run.vectors for run in runs]) if runs else None
    lexical = make_lexical([run.postings for run in runs], mask, store.language)
    return StoreIndex(store, tuple(runs), slots, mask, last, dense, lexical)


def update_index(engine: Engine, index: StoreIndex, device: IndexDevice) -> StoreIndex:
    """Return an index that has taken in what has changed in the store since; the cost is in proportion to that."""
    runs = list(index.runs)
    changes = read_changes(
        engine,
        index.store,
        index.numbers,
        index.last,
        lambda rows: runs.append(build_chunk_run(rows, device, index.store.language)),
    )
    live = np.ones(sum(len(run.numbers) for run in runs), dtype=np.bool_)
    if index.live is not None:
        live[: len(index.live)] = index.live
    live[np.searchsorted(index.slots, changes.removed)] = False
    return make_index(changes.store, *join_runs(runs, live, device, largest=JOINED_AT_ONCE), changes.last)


def compact_index(index: StoreIndex, device: IndexDevice) -> StoreIndex:
    """Return the index in few runs, without anything of chunks that have gone."""
    live = np.ones(len(index.slots), dtype=np.bool_) if index.live is None else index.live
    runs, live = join_runs(list(index.runs), live, device)
    return make_index(index.store, [list_run(run) for run in runs], live, index.last)


def save_snapshot(index: StoreIndex, data: DataDir) -> StoreIndex:
    """Write the snapshot of a compact index, whole or not at all, and remove those of earlier generations.

    Returns:
        The index, which knows where its runs lie.

    Raises:
        StorageFull: There is no space; nothing half-written was left.
    """
    folder = snapshot_folder(data, index.store)
    with hold_snapshots(folder.parent, wait=True), write_folder(folder, is_cache=True) as temporary:
        saved = [_save_run(run, number, temporary) for number, run in enumerate(index.runs)]
        reach("snapshot.written")
        content = {
            "format": FORMAT,
            "store_id": index.store.id,
            "generation": index.store.generation,
            "embedder_sha256": index.store.embedder.sha256,
            "chunks": len(index.numbers),
            "last": index.last,
            "runs": len(index.runs),
            "files": dict(file for files in saved for file in files.values()),
        }
        write_sealed_json(temporary / MANIFEST, content)
        reach("snapshot.hashed")
    reach("snapshot.published")
    remove_snapshots(folder.parent, index.store.generation)
    reach("snapshot.pruned")
    runs = [replace(run, saved=SavedRun(folder, files)) for run, files in zip(index.runs, saved, strict=True)]
    return replace(index, runs=tuple(runs))


def _save_run(run: ChunkRun, number: int, folder: Path) -> dict[str, tuple[str, str]]:
    """Write a run's arrays, or link to them where they have been written; return file and SHA-256 by part."""
    values: dict[str, NDArray[Any]] = {
        "numbers": run.numbers,
        "vectors": run.vectors.vectors,
        "owners": run.vectors.owners,
        "spans": run.spans.vectors,
        "span_lengths": run.spans.lengths,
        "span_firsts": run.spans.firsts,
    }
    values |= {name: getattr(run.postings, name) for name in ARRAYS}
    if run.vectors.lists is not None:
        values |= {part: getattr(run.vectors.lists, name) for part, name in LIST_PARTS.items()}
    files = {}
    for part in values:
        name = _name_file(number, part)
        digest = _link_part(run.saved, part, folder / name)
        if digest is None:
            np.save(folder / name, values[part], allow_pickle=False)
            release(values[part])
            digest = sha256_file(folder / name)
        files[part] = (name, digest)
    return files


def _name_file(number: int, part: str) -> str:
    return f"{number:03d}-{part}.npy"


def _link_part(saved: SavedRun | None, part: str, path: Path) -> str | None:
    """Return the SHA-256 of a part that was linked; None where it has to be written."""
    if saved is None or part not in saved.files:
        return None
    name, digest = saved.files[part]
    try:
        os.link(saved.folder / name, path)
    except OSError:  # the earlier snapshot has gone, or the file system knows no links
        return None
    return digest


def load_snapshot(folder: Path, store: Store, device: IndexDevice) -> StoreIndex | None:
    """Return the index in a folder, or None where it is missing, damaged or another store's.

    Every byte is checked against the manifest, and the manifest against its own checksum, before a library reads any.
    """
    if not folder.is_dir():
        return None
    try:
        content = read_sealed_json(folder / MANIFEST)
        wanted = (FORMAT, store.id, store.generation, store.embedder.sha256)
        found = tuple(content[key] for key in ("format", "store_id", "generation", "embedder_sha256"))
        if found != wanted:
            return None
        for name, digest in content["files"].items():
            if sha256_file(folder / name) != digest:
                raise ContractError(f"{folder / name}: its checksum differs")
        runs = [_load_run(folder, number, content["files"], device) for number in range(content["runs"])]
        return make_index(store, runs, np.ones(content["chunks"], dtype=np.bool_), content["last"])
    except (ContractError, OSError) as error:
        logger.warning("the index of store %r is damaged (%s); it is made again from the database", store.name, error)
        return None


def _load_run(folder: Path, number: int, digests: dict[str, str], device: IndexDevice) -> ChunkRun:
    """Read or map a run's verified arrays."""
    parts = (part for part in (*PARTS, *LIST_PARTS) if part in PARTS or _name_file(number, part) in digests)
    files = {part: _name_file(number, part) for part in parts}
    arrays = {part: _load_array(folder / name) for part, name in files.items()}
    is_listed = all(part in arrays for part in LIST_PARTS)
    lists = VectorLists(*(arrays[part] for part in LIST_PARTS)) if is_listed else None
    return ChunkRun(
        arrays["numbers"],
        make_run(arrays["vectors"], arrays["owners"], device, lists),
        SpanRun(arrays["spans"], arrays["span_lengths"], arrays["span_firsts"]),
        Postings(*(arrays[name] for name in ARRAYS)),
        SavedRun(folder, {part: (name, digests[name]) for part, name in files.items()}),
    )


def _load_array(path: Path) -> NDArray[Any]:
    is_large = path.stat().st_size >= MAPPED_FROM_BYTES
    return np.asarray(np.load(path, mmap_mode="r" if is_large else None, allow_pickle=False))
