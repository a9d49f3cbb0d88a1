"""Another embedder's vectors take the place of the old ones in one step; a killed change goes on where it stopped."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import Conflict, NotFound
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import delete_documents, read_documents
from retrieval.reembed import reembed
from retrieval.searcher import Searcher
from retrieval.store import find_store, read_chunks
from retrieval.sync import sync
from tests.fakes.hash_embedder import HashEmbedder

REPO = Path(__file__).resolve().parents[3]
REEMBED = """
import sys
from pathlib import Path
from core.layout import DataDir
from retrieval import reembed
from tests.fakes.hash_embedder import HashEmbedder
reembed.BATCH_CHUNKS = 2
reembed.reembed(DataDir(Path(sys.argv[1])), "acme", HashEmbedder(dimension=32, name="other"))
"""


def make_other() -> HashEmbedder:
    return HashEmbedder(dimension=32, name="other")


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        (source / f"page{number}.md").write_text(f"# Page {number}\n\nThe word of it is canary{number}.\n")
    data = DataDir(tmp_path / "data")
    bring_in(data, HashEmbedder())
    return data


def bring_in(data: DataDir, embedder: HashEmbedder) -> None:
    chunking = ChunkingConfig(60, overlap_tokens=16)
    sync(data, "acme", data.root.parent / "source", embedder=embedder, chunking=chunking, parsing=ParsingConfig())


def test_a_store_changes_its_embedder_under_an_open_searcher(data: DataDir) -> None:
    old = Searcher(data, make_embedder=HashEmbedder)
    before = old.search(["acme"], "canary7").hits
    with pytest.raises(Conflict, match=r"action=reembed store=acme embedder\.name=other"):
        bring_in(data, make_other())
    with pytest.raises(NotFound):
        reembed(data, "none", make_other())
    report = reembed(data, "acme", make_other())
    assert (report.chunks, report.embedded) == (10, 10)
    with pytest.raises(Conflict, match=r"action=reembed store=acme embedder\.name=hash"):
        old.search(["acme"], "canary7")
    old.close()
    new = Searcher(data, make_embedder=make_other)
    hits = new.search(["acme"], "canary7").hits
    assert hits[0].chunk_id == before[0].chunk_id
    (cosine,) = make_other().embed_windows([f"{hits[0].heading}\n{hits[0].text}"]) @ make_other().embed_query("canary7")
    assert hits[0].dense_score == pytest.approx(float(cosine), abs=1e-5)
    with pytest.raises(Conflict, match="already"):
        reembed(data, "acme", make_other())
    bring_in(data, make_other())
    reembed(data, "acme", HashEmbedder())  # and back
    again = Searcher(data, make_embedder=HashEmbedder)
    assert again.search(["acme"], "canary7").hits == before
    new.close()
    again.close()


def test_what_is_deleted_meanwhile_is_left_out(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deleter(HashEmbedder):
        """Deletes documents while it embeds: one of the batch under way, and all of the next."""

        def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
            engine = open_database(data.database)
            store = find_store(engine, "acme")
            known = read_documents(engine, store)
            delete_documents(engine, store, [known[f"page{number}.md"].id for number in (1, 2, 3) if len(known) == 10])
            engine.dispose()
            return super().embed_windows(windows)

    monkeypatch.setattr("retrieval.reembed.BATCH_CHUNKS", 2)
    reembed(data, "acme", Deleter(dimension=32, name="other"))
    searcher = Searcher(data, make_embedder=make_other)
    assert {hit.file for hit in searcher.search(["acme"], "canary7", k=20).hits} == {
        f"page{number}.md" for number in (0, 4, 5, 6, 7, 8, 9)
    }
    searcher.close()


@pytest.mark.parametrize("place", ["reembed.committed:3", "reembed.swapped", "reembed.done"])
def test_a_killed_change_serves_the_old_vectors_and_goes_on(data: DataDir, place: str) -> None:
    environment = {**os.environ, "LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": place}
    code = subprocess.run(
        [sys.executable, "-c", REEMBED, str(data.root)], cwd=REPO, env=environment, check=False
    ).returncode
    assert code == -9
    if place == "reembed.done":
        searcher = Searcher(data, make_embedder=make_other)
    else:
        searcher = Searcher(data, make_embedder=HashEmbedder)
    assert "canary3" in searcher.search(["acme"], "canary3").hits[0].text
    searcher.close()
    if place == "reembed.done":
        return
    (data.root.parent / "source" / "page3.md").unlink()
    (data.root.parent / "source" / "new.md").write_text("# New\n\nThe word is canary99.\n")
    bring_in(data, HashEmbedder())  # the store may change in between
    report = reembed(data, "acme", make_other())
    done = 6 if place == "reembed.committed:3" else 10
    assert (report.chunks, report.embedded) == (10, 10 - done + 1)
    engine = open_database(data.database)
    _, rows = read_chunks(engine, find_store(engine, "acme"))
    engine.dispose()
    for row in rows:
        assert np.allclose(row.vectors.windows, make_other().embed_windows([f"{row.heading}\n{row.text}"]), atol=1e-6)
