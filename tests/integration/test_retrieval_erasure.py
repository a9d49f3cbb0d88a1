"""Deleted means gone (promise I3), and stores do not see each other (promise I2).

Every file holds a word of its own in its text, its heading, its front matter and its name. After a deletion the word
finds nothing at once, and no file of the data directory holds it; where the deleting process was killed, after the next
start.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.ingest import ingest
from retrieval.searcher import Searcher, SearchResult
from retrieval.store import find_store
from retrieval.sync import delete, sync
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.warm_python import WarmPython

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
KILLS = 30 if IS_FULL else 5
FILES = 600 if IS_FULL else 40
PLACES = (
    "deletion.written",
    "deletion.committed",
    "snapshot.written",
    "snapshot.published",
    "snapshot.pruned",
    "erasure.pruned",
    "erasure.rewritten",
    "erasure.forgotten",
    "erasure.truncated",
)
"""In the order in which a deletion comes to them."""
STORE_PLACES = ("store_deletion.written", "store_deletion.committed", "erasure.pruned", "erasure.rewritten")
CANARY_QUERIES = 1000 if IS_FULL else 100
CHUNKING = ChunkingConfig(60, overlap_tokens=16)


def canary_of(number: int) -> str:
    return f"qzx{number:04d}kestrel"  # no stem of it is shorter than its number


def write_file(source: Path, number: int) -> Path:
    word, filler = canary_of(number), "The pump needs water and a filter. " * (5 + number % 40)
    path = source / f"{number % 7}" / f"{word}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\nowner: {word}\n---\n# About {word}\n\n{filler}\n\n## More\n\n{filler} It is {word}.\n")
    return path


def find_traces(data: DataDir, numbers: list[int]) -> list[tuple[str, str]]:
    """Files of the data directory that hold a canary, in whatever case and as 16-bit text too."""
    traces = []
    for path in data.root.rglob("*"):
        content = path.read_bytes().lower() if path.is_file() else b""
        content += path.name.encode()
        for number in numbers:
            stem = canary_of(number)[:7]
            if stem.encode() in content or stem.encode("utf-16-le") in content:
                traces.append((stem, str(path.relative_to(data.root))))
    return traces


def run_sync(data: DataDir, source: Path) -> None:
    sync(data, "acme", source, embedder=HashEmbedder(), chunking=CHUNKING, parsing=ParsingConfig())


def ask(searcher: Searcher, number: int, store: str = "acme") -> SearchResult:
    return searcher.search([store], canary_of(number), k=5)


def test_deleted_documents_leave_no_byte_behind(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(1)
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    paths = {number: write_file(source, number) for number in range(FILES)}
    run_sync(data, source)
    searcher = Searcher(data, make_embedder=HashEmbedder)  # stays open, as a gateway does
    assert all(canary_of(number) in ask(searcher, number).hits[0].file for number in paths)
    assert len(find_traces(data, list(paths))) >= FILES
    gone: list[int] = []
    while paths:
        for number in chance.sample(sorted(paths), min(len(paths), 1 + FILES // 6)):
            gone.append(number)
            path = paths.pop(number)
            if number % 3 == 0:
                name = path.relative_to(source).as_posix()
                path.unlink()
                delete(data, "acme", name)
            else:
                path.unlink()
        if paths:
            run_sync(data, source)
        else:
            delete(data, "acme")
        assert find_traces(data, gone) == []
        for number in gone if paths else []:
            assert not any(canary_of(number) in f"{hit.file} {hit.text}" for hit in ask(searcher, number).hits)
    searcher.close()
    record_property("deleted_documents", len(gone))


def test_a_replaced_text_leaves_no_byte_behind(tmp_path: Path) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    for number in range(12):
        write_file(source, number).rename(source / f"page{number}.md")
    run_sync(data, source)
    for number in range(6):
        (source / f"page{number}.md").write_text("# Nothing\n\nNothing to see.\n")
    run_sync(data, source)
    assert find_traces(data, list(range(6))) == []
    assert {stem for stem, _ in find_traces(data, list(range(6, 12)))} == {canary_of(n)[:7] for n in range(6, 12)}


def remove_half(data: DataDir, source: Path, chance: random.Random) -> list[int]:
    """Bring files in and remove half of them from the source; return their numbers."""
    paths = {number: write_file(source, number) for number in range(30)}
    run_sync(data, source)
    gone = chance.sample(sorted(paths), 15)
    for number in gone:
        paths[number].unlink()
    return gone


def check_after_kill(data: DataDir, source: Path, gone: list[int]) -> bool:
    """The deletion happened whole or not at all, and leaves no byte after a start; return whether it happened."""
    engine = open_database(data.database)
    names = " ".join(state.file for state in list_documents(engine, find_store(engine, "acme")))
    engine.dispose()
    deleted = [number for number in gone if canary_of(number) not in names]
    assert deleted in ([], gone)  # one transaction
    Searcher(data, make_embedder=HashEmbedder).close()
    assert find_traces(data, deleted) == []
    run_sync(data, source)
    assert find_traces(data, gone) == []
    return bool(deleted)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_deletion_that_is_killed_is_done_by_the_next_start(
    programs: WarmPython, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(seed)
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    gone = remove_half(data, source, chance)
    with programs.start("tests.fakes.sync_command", str(data.root), "acme", str(source)) as program:
        program.output.read(1)  # it has begun
        time.sleep(chance.uniform(0, 0.08))
        program.kill()
        code = program.wait()
    has_traces = find_traces(data, gone) != []
    is_deleted = check_after_kill(data, source, gone)
    record_property("kills_at_random_times", int(code == -signal.SIGKILL))
    record_property("of_them_with_bytes_left", int(is_deleted and has_traces))


@pytest.mark.parametrize("place", PLACES)
def test_a_deletion_that_is_killed_at_a_named_place_is_done_by_the_next_start(
    programs: WarmPython, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), tmp_path / "source"
    gone = remove_half(data, source, random.Random(place))
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": place}
    with programs.start("tests.fakes.sync_command", str(data.root), "acme", str(source), **named) as program:
        assert program.wait() == -signal.SIGKILL
    has_traces = find_traces(data, gone) != []
    is_deleted = check_after_kill(data, source, gone)
    assert is_deleted is (place != "deletion.written")
    record_property("kills_at_named_places", 1)
    record_property("of_them_with_bytes_left", int(is_deleted and has_traces))


@pytest.mark.parametrize("place", STORE_PLACES if IS_FULL else STORE_PLACES[1:2])
def test_the_deletion_of_a_store_that_is_killed_happens_whole_or_not_at_all(
    programs: WarmPython, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data, source, numbers = DataDir(tmp_path / "data"), tmp_path / "source", list(range(12))
    for number in numbers:
        write_file(source, number)
    run_sync(data, source)
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": place}
    with programs.start("tests.fakes.sync_command", str(data.root), "acme", **named) as program:
        assert program.wait() == -signal.SIGKILL
    searcher = Searcher(data, make_embedder=HashEmbedder)  # the next start
    if place == "store_deletion.written":
        assert all(canary_of(number) in ask(searcher, number).hits[0].file for number in numbers)
    else:
        assert searcher.list_stores() == []
        assert find_traces(data, numbers) == []
    searcher.close()
    record_property("kills_at_named_places", 1)


def test_a_store_is_not_seen_from_another_and_does_not_move_its_scores(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data = DataDir(tmp_path / "data")
    numbers = range(60)
    for number in numbers:
        write_file(tmp_path / "a", number)
    for number in range(1000 if IS_FULL else 200):
        path = tmp_path / "b" / f"{number}.md"
        path.parent.mkdir(exist_ok=True)
        shared = canary_of(number % 60)
        path.write_text(f"# Foreign {number}\n\nThe pump of {shared} belongs to qzxforeign{number:04d}.\n")

    def bring_in(store: str, folder: str) -> None:
        source = tmp_path / folder
        ingest(data, store, source, embedder=HashEmbedder(), chunking=CHUNKING, parsing=ParsingConfig())

    def ask_all() -> list[list[tuple[str, float, float, float]]]:
        searcher = Searcher(data, make_embedder=HashEmbedder)
        queries = [f"{canary_of(number % 60)} pump filter {number % 17}" for number in range(CANARY_QUERIES)]
        results = [searcher.search(["a"], query, k=10).hits for query in queries]
        searcher.close()
        assert all("qzxforeign" not in hit.text and hit.store == "a" for hits in results for hit in hits)
        return [[(hit.chunk_id, hit.score, hit.dense_score, hit.lexical_score) for hit in hits] for hits in results]

    bring_in("a", "a")
    before = ask_all()
    bring_in("b", "b")
    assert ask_all() == before
    record_property("queries_before_and_after", CANARY_QUERIES)
