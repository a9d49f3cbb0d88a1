"""A watched folder is followed, and one that vanishes for a while removes nothing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import Conflict
from core.layout import DataDir
from retrieval.config import ChunkingConfig, RetrievalConfig, WatchConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.ingest import IngestReport
from retrieval.store import find_store
from retrieval.watch import watch
from tests.fakes.hash_embedder import HashEmbedder

PATIENCE_S = 60


class Watched:
    """A watch in a thread, and the reports that it gave."""

    def __init__(self, data: DataDir, source: Path) -> None:
        self.reports: list[IngestReport] = []
        self._news = threading.Condition()
        self.data, self.source = data, source

    def tell(self, report: IngestReport) -> None:
        with self._news:
            self.reports.append(report)
            self._news.notify_all()

    def wait(self, is_done: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(is_done, PATIENCE_S)

    def names(self) -> list[str]:
        engine = open_database(self.data.database)
        names = [document.file for document in list_documents(engine, find_store(engine, "acme"))]
        engine.dispose()
        return names


@contextmanager
def watched(data: DataDir, source: Path) -> Iterator[Watched]:
    config = RetrievalConfig(
        chunking=ChunkingConfig(60, overlap_tokens=16), watch=WatchConfig(debounce_s=0.05, interval_s=0.2)
    )
    stop, log = threading.Event(), Watched(data, source)
    thread = threading.Thread(
        target=watch,
        args=(data, "acme", source),
        kwargs={"embedder": HashEmbedder(), "config": config, "tell": log.tell, "stop": stop},
    )
    thread.start()
    try:
        yield log
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_watched_folder_is_followed_and_its_absence_removes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pump.md").write_text("# Pump\n\nThe pump.\n")
    with watched(DataDir(source / "data"), source) as log:
        log.wait(lambda: sum(report.added for report in log.reports) == 1)
        (source / "duck.md").write_text("# Duck\n\nThe duck.\n")
        log.wait(lambda: sum(report.added for report in log.reports) == 2)
        elsewhere = source.with_name("elsewhere")
        log.data = DataDir(elsewhere / "data")
        source.rename(elsewhere)
        assert log.names() == ["duck.md", "pump.md"]
        elsewhere.rename(source)
        log.data = DataDir(source / "data")
        (source / "duck.md").unlink()
        log.wait(lambda: any(report.removed for report in log.reports))
        assert log.names() == ["pump.md"]
        (source / "pump.md").unlink()  # the last one: a folder without files is taken for one that is not mounted
        (source / "goose.txt").mkdir()
        threading.Event().wait(0.5)
        assert log.names() == ["pump.md"]


def test_another_embedder_ends_the_watch(tmp_path: Path) -> None:
    source, data = tmp_path / "source", DataDir(tmp_path / "data")
    source.mkdir()
    (source / "pump.md").write_text("# Pump\n\nThe pump.\n")
    with watched(data, source) as log:
        log.wait(lambda: bool(log.reports))
    with pytest.raises(Conflict, match=r"embedder\.name=hash"):
        watch(
            data,
            "acme",
            source,
            embedder=HashEmbedder(name="other"),
            config=RetrievalConfig(),
            tell=lambda _: None,
            stop=threading.Event(),
        )
