"""A hit's surroundings are an exact slice of its document under the same heading, and damage is refused."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from core.errors import ContractError
from core.layout import DataDir
from retrieval.chunking import cut_document
from retrieval.config import ChunkingConfig
from retrieval.database import open_database, write_transaction
from retrieval.document import Document, Section
from retrieval.embedding import embed_passages
from retrieval.store import NewChunk, NewDocument, commit_documents, make_store, read_chunks
from retrieval.surroundings import read_surroundings, read_window
from tests.fakes.hash_embedder import HashEmbedder

EMBEDDER = HashEmbedder()
(VECTORS,) = embed_passages([(None, "x")], EMBEDDER)
CONFIG = ChunkingConfig(32, overlap_tokens=12)


def add(engine: Engine, document: Document) -> list[tuple[int, NewChunk]]:
    """Store a document; return its chunks with their numbers."""
    store = make_store(engine, "acme", EMBEDDER.identity)
    chunks = tuple(
        NewChunk(c.start, c.end, c.page, c.heading, document.text[c.start : c.end], VECTORS)
        for c in cut_document(document, CONFIG, EMBEDDER.token_starts)
    )
    commit_documents(engine, store, [NewDocument("a.md", "0" * 64, "1", 1, document.text, chunks)])
    return list(zip((row.id for row in read_chunks(engine, store)[1]), chunks, strict=True))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(DataDir(tmp_path).database)


def sentences(first: int, count: int) -> str:
    return " ".join(f"The pump number {n} has a clean filter." for n in range(first, first + count))


def test_neighbours_join_without_repeating_the_overlap(engine: Engine) -> None:
    body = sentences(0, 12)
    chunks = add(engine, Document(body, (Section(0, len(body), None, "Pump"),)))
    assert any(later.start < earlier.end for (_, earlier), (_, later) in pairwise(chunks))
    number, chunk = chunks[2]
    near = read_surroundings(engine, [number], 1)[number]
    assert (near.start, near.end) == (chunks[1][1].start, chunks[3][1].end)
    assert near.text == body[near.start : near.end]
    assert read_surroundings(engine, [number], 0)[number].text == chunk.text
    assert read_surroundings(engine, [number, chunks[0][0], 999], 20).keys() == {number, chunks[0][0]}
    assert read_surroundings(engine, [number], 20)[number].text == body


def test_surroundings_end_with_their_heading(engine: Engine) -> None:
    one, two = sentences(0, 6), sentences(6, 6)
    body = f"{one}\n\n{two}"
    sections = (Section(0, len(one), None, "Pump"), Section(len(one) + 2, len(body), None, "Duck"))
    chunks = add(engine, Document(body, sections))
    for number, chunk in chunks:
        assert read_surroundings(engine, [number], 20)[number].text == (one if chunk.heading == "Pump" else two)


@given(st.text(st.sampled_from("ab .\n"), min_size=1, max_size=300), st.integers(0, 4))
def test_surroundings_are_slices_that_hold_their_chunk(body: str, neighbours: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(DataDir(Path(folder)).database)
        half = len(body) // 2
        sections = (Section(0, half, None, "one"), Section(half, len(body), None, None))
        chunks = add(engine, Document(body, sections))
        found = read_surroundings(engine, [number for number, _ in chunks], neighbours)
        for number, chunk in chunks:
            near = found[number]
            assert near.text == body[near.start : near.end]
            assert near.start <= chunk.start < chunk.end <= near.end
        engine.dispose()


@pytest.mark.parametrize("change", ["UPDATE chunks SET text = 'lies'", "UPDATE documents SET text = UPPER(text)"])
def test_damage_is_refused(engine: Engine, change: str) -> None:
    body = sentences(0, 12)
    (number, _), *_ = add(engine, Document(body, (Section(0, len(body), None, "Pump"),)))
    with write_transaction(engine) as connection:
        connection.execute(text(change))
    with pytest.raises(ContractError, match="not what was stored"):
        read_surroundings(engine, [number], 1)


def test_a_window_is_the_documents_own_text_around_a_chunk(engine: Engine) -> None:
    body = f"Été 🌍 {sentences(0, 12)}"
    chunks = add(engine, Document(body, (Section(0, len(body), None, "Pump"),)))
    for number, chunk in chunks:
        for around in (0, 1, 7, 10_000):
            window = read_window(engine, number, around)
            assert window is not None
            first, end = max(0, chunk.start - around), min(len(body), chunk.end + around)
            assert (window.start, window.text, window.length) == (first, body[first:end], len(body))
    assert read_window(engine, 999, 5) is None


def test_a_window_whose_chunk_is_not_there_is_refused(engine: Engine) -> None:
    body = sentences(0, 4)
    number = add(engine, Document(body, (Section(0, len(body), None, None),)))[0][0]
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE documents SET text = replace(text, 'pump', 'lamp')"))
    with pytest.raises(ContractError, match="damaged"):
        read_window(engine, number, 5)
