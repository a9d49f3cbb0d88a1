"""Whatever happens to an index's files is seen before a library reads them, and costs no answer (promise D4).

Each case damages every kind of file of a snapshot in turn: bits of the header and elsewhere, 64 bits at once, cuts,
bytes more or fewer, zeros, swapped and lost files. Then the store is opened anew, as after a restart: the damage is
named, numpy and FAISS have not opened one file of the folder, and the answers are those of before. Every byte of the
manifest is tried besides.
"""

import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.layout import DataDir
from retrieval import approximate, snapshot
from retrieval.config import ChunkingConfig, IndexDevice, ParsingConfig
from retrieval.database import open_database
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from retrieval.snapshot import LIST_PARTS, MANIFEST, PARTS, load_snapshot, open_index, snapshot_folder
from retrieval.spans import quantise
from retrieval.store import NewChunk, NewDocument, Store, commit_documents, find_store, make_store
from retrieval.vectors import ChunkVectors
from tests.fakes.hash_embedder import HashEmbedder
from tests.open_watch import Openings, watch_openings

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
FILES = 60
RUNS = 2
LISTED_FROM_ROWS = 100
"""So that the first run has lists of its vectors, as a run of a large store has, and the second has none."""
NAMES = RUNS * len(PARTS) + len(LIST_PARTS) + 1
"""Files of the snapshot, its manifest among them."""
HEADER_BYTES = 128
"""Of a NumPy file; of the manifest, where the keys that are checked first stand."""
QUERIES = ("canary07", "canary59 and the pump", "which part needs water?", "filter 31")
MANY_CHUNKS = 10_000
REBUILT_S = 60.0

Content = bytearray
Answers = list[tuple[str, str, float, float, float]]


def flip(content: Content, places: list[int]) -> Content:
    for place in places:
        content[place // 8] ^= 1 << place % 8
    return content


def insert(content: Content, place: int, more: bytes) -> Content:
    return content[:place] + more + content[place:]


def fill_with_zeros(content: Content, chance: random.Random) -> Content:
    """A sector that was lost; it starts at a byte that is not zero yet."""
    start = chance.choice([place for place, byte in enumerate(content) if byte])
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    return content


CHANGES: dict[str, Callable[[Content, random.Random], Content]] = {
    "a bit of the header": lambda c, r: flip(c, [r.randrange(8 * min(HEADER_BYTES, len(c)))]),
    "another bit of the header": lambda c, r: flip(c, [r.randrange(8 * min(16, len(c)))]),
    "a bit": lambda c, r: flip(c, [r.randrange(8 * len(c))]),
    "a bit of the last byte": lambda c, r: flip(c, [8 * len(c) - r.randrange(1, 9)]),
    "64 bits": lambda c, r: flip(c, r.sample(range(8 * len(c)), 64)),
    "the last byte cut": lambda c, _: c[:-1],
    "cut anywhere": lambda c, r: c[: r.randrange(1, len(c))],
    "cut to nothing": lambda c, _: c[:0],
    "the header cut": lambda c, _: c[HEADER_BYTES:],
    "a newline more": lambda c, _: c + b"\n",
    "zeros more": lambda c, r: c + bytes(r.choice((1, 8, 4096))),
    "twice": lambda c, _: c + c,
    "a byte more": lambda c, r: insert(c, r.randrange(len(c)), bytes([r.randrange(256)])),
    "a byte fewer": lambda c, r: c[: (place := r.randrange(len(c)))] + c[place + 1 :],
    "zeros": fill_with_zeros,
}
KINDS = (*CHANGES, "swapped with another", "lost")
CASES = NAMES * len(KINDS) if IS_FULL else 40


@dataclass(frozen=True)
class Whole:
    """A store whose index has two runs, and what it answers."""

    data: DataDir
    store: Store
    copy: Path
    answers: Answers

    @property
    def folder(self) -> Path:
        return snapshot_folder(self.data, self.store)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.copy.iterdir())


def write_files(source: Path, numbers: range) -> None:
    for number in numbers:
        filler = f"The pump {number} needs water, and its filter {number % 9} is cleaned. " * (3 + number % 5)
        (source / f"{number:02d}.md").write_text(f"# About {number}\n\n{filler}\n\nThe word is canary{number:02d}.\n")


@pytest.fixture(scope="module")
def lists() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "LISTED_FROM_ROWS", LISTED_FROM_ROWS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, lists: None) -> Whole:
    root = tmp_path_factory.mktemp("damage")
    data, source = DataDir(root / "data"), root / "source"
    source.mkdir()
    for numbers in (range(FILES * 5 // 6), range(FILES * 5 // 6, FILES)):  # the second is a run of its own
        write_files(source, numbers)
        chunking, parsing = ChunkingConfig(40, overlap_tokens=8), ParsingConfig(workers=1)
        ingest(data, "acme", source, embedder=HashEmbedder(), chunking=chunking, parsing=parsing)
    engine = open_database(data.database)
    store = find_store(engine, "acme")
    engine.dispose()
    shutil.copytree(snapshot_folder(data, store), root / "copy")
    whole = Whole(data, store, root / "copy", ask(data))
    assert len(whole.names) == NAMES
    return whole


def ask(data: DataDir) -> Answers:
    """What a searcher that has just started answers."""
    searcher = Searcher(data, make_embedder=HashEmbedder)
    hits = [hit for query in QUERIES for hit in searcher.search(["acme"], query, k=5).hits]
    searcher.close()
    return [(hit.chunk_id, hit.text, hit.score, hit.dense_score, hit.lexical_score) for hit in hits]


def restore(whole: Whole) -> None:
    """Bring the snapshot back as it was written first."""
    shutil.rmtree(whole.folder, ignore_errors=True)
    shutil.copytree(whole.copy, whole.folder)


def pick_case(case: int, names: list[str]) -> tuple[str, str]:
    """Go through all pairs of file and kind, along the diagonals so that a few cases have most of both."""
    turn, place = divmod(case, len(names))
    return names[place], KINDS[(place + turn) % len(KINDS)]


def spoil(whole: Whole, name: str, kind: str, chance: random.Random) -> set[str]:
    """Damage a file; return the names of those that have changed."""
    path = whole.folder / name
    content = bytearray(path.read_bytes())
    if kind == "lost":
        path.unlink()
        return {name}
    if kind == "swapped with another":
        others = [whole.folder / other for other in whole.names if (whole.folder / other).read_bytes() != content]
        other = chance.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return {name, other.name}
    changed = CHANGES[kind](bytearray(content), chance)
    assert changed != content
    path.write_bytes(changed)
    return {name}


def check_nothing_read(openings: Openings) -> None:
    """No library has opened a file of the snapshot, and nobody did so without Python seeing it."""
    assert openings.by_library.total() == 0, openings.by_library
    assert openings.by_system <= openings.by_python


def test_the_watch_sees_what_libraries_read(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    for mapped_from in (0, 1 << 30):
        monkeypatch.setattr(snapshot, "MAPPED_FROM_BYTES", mapped_from)
        restore(whole)
        with watch_openings(whole.folder) as openings:
            assert load_snapshot(whole.folder, whole.store, IndexDevice.cpu) is not None
        assert set(openings.by_system) == set(openings.by_python) == set(whole.names)
        assert {name for name, count in openings.by_library.items() if count} == set(whole.names) - {MANIFEST}


@pytest.mark.parametrize("case", range(CASES))
def test_damage_is_seen_before_a_library_reads_it(
    whole: Whole,
    case: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(snapshot, "MAPPED_FROM_BYTES", 0 if case % 2 else 1 << 30)
    restore(whole)
    name, kind = pick_case(case, whole.names)
    changed = spoil(whole, name, kind, random.Random(case))
    with caplog.at_level(logging.WARNING), watch_openings(whole.folder) as openings:
        assert ask(whole.data) == whole.answers, f"{name}: {kind}"
    check_nothing_read(openings)
    (warning,) = [record.getMessage() for record in caplog.records if "made again" in record.getMessage()]
    assert any(other in warning for other in changed), warning
    assert load_snapshot(whole.folder, whole.store, IndexDevice.cpu) is not None, "it was not mended on disk"
    record_property("damaged_indexes", 1)


def test_the_cases_cover_every_file_and_every_kind(whole: Whole) -> None:
    picked = [pick_case(case, whole.names) for case in range(CASES)]
    assert {name for name, _ in picked} == set(whole.names)
    assert {kind for _, kind in picked} == set(KINDS)
    if IS_FULL:
        assert len(set(picked)) == CASES >= 300


def test_every_byte_of_the_manifest_is_held_against_what_was_written(
    whole: Whole, caplog: pytest.LogCaptureFixture, record_property: Callable[[str, object], None]
) -> None:
    restore(whole)
    path, chance = whole.folder / MANIFEST, random.Random(4)
    content = path.read_bytes()
    caplog.set_level(logging.ERROR)
    with watch_openings(whole.folder) as openings:
        for place in range(len(content)):
            byte = content[place : place + 1]
            others = [bytes([byte[0] ^ 1 << chance.randrange(8)])]
            if IS_FULL or place == len(content) - 1:  # a blank changes no value, and least of all at the end
                others += [b"", b" " if byte != b" " else b"\n", byte + b" "]
            for other in others:
                path.write_bytes(content[:place] + other + content[place + 1 :])
                assert load_snapshot(whole.folder, whole.store, IndexDevice.cpu) is None, (place, other)
                openings.settle()
            record_property("damaged_manifests", len(others))
    check_nothing_read(openings)
    assert set(openings.by_system) == {MANIFEST}
    restore(whole)
    assert load_snapshot(whole.folder, whole.store, IndexDevice.cpu) is not None


def test_files_of_another_store_are_not_taken_for_its_own(whole: Whole, tmp_path: Path) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    source.mkdir()
    write_files(source, range(FILES))
    for store in ("other", "acme"):
        chunking, parsing = ChunkingConfig(40, overlap_tokens=8), ParsingConfig(workers=1)
        ingest(data, store, source, embedder=HashEmbedder(), chunking=chunking, parsing=parsing)
    wanted = ask(data)
    one, two = data.indexes / "1", data.indexes / "2"
    one.rename(tmp_path / "one")
    two.rename(one)
    (tmp_path / "one").rename(two)
    folder = next(path for path in two.iterdir() if path.name.isdigit())
    with watch_openings(folder) as openings:
        assert ask(data) == wanted
    check_nothing_read(openings)


@pytest.mark.skipif(not IS_FULL, reason="10,000 chunks: in the full set (LOAM_TEST_FULL=1)")
def test_the_index_of_ten_thousand_chunks_is_made_again_within_a_minute(
    tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "LISTED_FROM_ROWS", 10 * MANY_CHUNKS)  # as it is outside this module
    data, chance = DataDir(tmp_path), np.random.default_rng(4)
    embedder = HashEmbedder(dimension=384)
    engine = open_database(data.database)
    store = make_store(engine, "acme", embedder.identity)
    vectors = chance.standard_normal((MANY_CHUNKS, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [
        f"Sentence {n} tells of the part w{n} in a pump or a valve. {'It is cleaned. ' * 60}"
        for n in range(MANY_CHUNKS)
    ]
    chunks = [
        NewChunk(0, len(words), None, None, words, ChunkVectors(vectors[n : n + 1], quantise(vectors[n : n + 1])))
        for n, words in enumerate(texts)
    ]
    documents = [
        NewDocument(f"{n}.md", str(n), "1", len(chunk.text), chunk.text, (chunk,)) for n, chunk in enumerate(chunks)
    ]
    commit_documents(engine, store, documents)
    store = find_store(engine, "acme")
    open_index(engine, data, store, IndexDevice.cpu)
    path = snapshot_folder(data, store) / "000-vectors.npy"
    path.write_bytes(flip(bytearray(path.read_bytes()), [MANY_CHUNKS]))
    start = time.monotonic()
    index = open_index(engine, data, store, IndexDevice.cpu)
    seconds = time.monotonic() - start
    engine.dispose()
    record_property("ten_thousand_chunks_made_again_s", round(seconds, 2))
    assert len(index.numbers) == MANY_CHUNKS
    assert seconds < REBUILT_S
