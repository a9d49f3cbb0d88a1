"""Measure what a sync costs against a full ingest: `python scripts/bench_sync.py [files=2000] [output=json]`.

Writes files of real passages, ingests them all once, then changes, renames, adds and removes a hundredth of them and
syncs, round after round. The model is loaded and every library imported before the clock starts; starting the parser's
child process counts on both sides. Works in a temporary folder. Does not know how a sync finds what changed.
"""

from core.entry import begin_program

begin_program()

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, check_ranges, load_config, run_app
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.beir import read_collection
from retrieval.config import ChunkingConfig, EmbedderConfig, Output, ParsingConfig
from retrieval.display import follow_progress
from retrieval.embedding import SentenceEmbedder, open_embedder
from retrieval.ingest import IngestReport, Progress, ingest
from retrieval.searcher import Searcher
from retrieval.sync import sync

STORE = "bench"
LONG_AGO = 1_700_000_000
"""Files carry times in the past: one that was changed just now is read however often it is looked at."""


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_sync.py can be told.

    Attributes:
        source: Folder of the retrieval sets.
        sets: Whose passages make up the files.
        files: How many files.
        passages_per_file: Passages in each, under a heading of their own.
        changed_percent: Share of the files that each round changes.
        rounds: Rounds of each kind of change; the median counts.
        output: How the figures are printed.
        paths: Where the models are.
        embedder: The embedding model.
        chunking: How documents are cut.
    """

    source: str = "../shared/data"
    sets: list[str] = field(default_factory=lambda: ["squad_dev_a", "cranfield", "hotpotqa_100"])
    files: int = 2000
    passages_per_file: int = 1
    changed_percent: float = 1.0
    rounds: int = 5
    output: Output = Output.table
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "bench_sync",
            {
                "files": (self.files, 10, 1_000_000),
                "passages_per_file": (self.passages_per_file, 1, 100),
                "changed_percent": (self.changed_percent, 0.01, 50),
                "rounds": (self.rounds, 1, 100),
            },
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What the bench found.

    Attributes:
        files: In the source.
        chunks: In the store after the full ingest.
        changed_files: By each round.
        ingest_s: Seconds of the full ingest.
        sync_s: Median seconds of a sync by kind of change.
        embedded: Chunks that the last round of each kind embedded.
        times_faster: The full ingest's seconds over those of a sync, by kind of change.
        first_search_ms: Median milliseconds of the first search after a sync, in a process that had the index before.
    """

    files: int
    chunks: int
    changed_files: int
    ingest_s: float
    sync_s: dict[str, float]
    embedded: dict[str, int]
    times_faster: dict[str, float]
    first_search_ms: float


class Source:
    """The folder of files, and the ways to change it."""

    def __init__(self, folder: Path, passages: list[str], config: BenchConfig) -> None:
        """Write the files."""
        self._folder = folder
        self._passages = passages
        self._config = config
        self._chance = random.Random(0)  # noqa: S311  (the same files every time)
        self._now = LONG_AGO
        self._made = 0
        self.names: list[str] = []
        for _ in range(config.files):
            self.add()

    @property
    def share(self) -> int:
        """How many files a round changes."""
        return max(1, round(self._config.files * self._config.changed_percent / 100))

    def add(self) -> None:
        """Write one more file; its headings are its own, so that no chunk says what another says."""
        number = self._made
        self._made += 1
        name = f"{number % 40:02d}/report-{number:06d}.md"
        lines = [f"# Report {number}"]
        for part in range(self._config.passages_per_file):
            passage = self._passages[(number * self._config.passages_per_file + part) % len(self._passages)]
            lines.append(f"## Part {part + 1}\n\n{passage}")
        self._write(name, "\n\n".join(lines) + "\n")
        self.names.append(name)

    def _write(self, name: str, content: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        self._now += 1
        os.utime(path, (self._now, self._now))

    def change(self) -> None:
        """Change a sentence at the end of some files."""
        for name in self._chance.sample(self.names, self.share):
            content = (self._folder / name).read_text(encoding="utf-8")
            self._write(name, f"{content.rstrip()} Revised for the {self._now}th time.\n")

    def rewrite(self) -> None:
        """Change every part of some files."""
        for name in self._chance.sample(self.names, self.share):
            content = (self._folder / name).read_text(encoding="utf-8")
            self._write(name, content.replace("\n\n## ", f"\n\nRevised for the {self._now}th time.\n\n## "))

    def move(self) -> None:
        """Rename some files."""
        for place in self._chance.sample(range(len(self.names)), self.share):
            name = self.names[place]
            moved = f"{name.removesuffix('.md')}-moved.md"
            (self._folder / name).rename(self._folder / moved)
            self.names[place] = moved

    def exchange(self) -> None:
        """Remove some files and write as many new ones."""
        for name in self._chance.sample(self.names, self.share):
            (self._folder / name).unlink()
            self.names.remove(name)
            self.add()

    def leave(self) -> None:
        """Change nothing."""


def main(composed: DictConfig) -> None:
    """Run the bench and print what it found."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    passages = read_passages(Path(config.source), config.sets)
    models = DataDir(Path(config.paths.data_dir))
    embedder = open_embedder(models, config.embedder)
    embedder.load()
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as folder, follow_progress() as progress:
        figures = measure(Path(folder), passages, embedder, config, progress)
    if config.output is Output.json:
        sys.stdout.write(json.dumps(asdict(figures)) + "\n")
        return
    table = Table(title=f"{figures.files} files, {figures.chunks} chunks, {figures.changed_files} files a round")
    for name in ("what", "seconds", "chunks embedded", "times faster"):
        table.add_column(name, justify="left" if name == "what" else "right")
    table.add_row("full ingest", f"{figures.ingest_s:.1f}", str(figures.chunks), "1")
    for kind, seconds in figures.sync_s.items():
        table.add_row(
            f"sync, {kind}", f"{seconds:.3f}", str(figures.embedded[kind]), f"{figures.times_faster[kind]:.0f}"
        )
    console = Console()
    console.print(table)
    console.print(f"first search after a sync: {figures.first_search_ms:.0f} ms")


def read_passages(folder: Path, sets: list[str]) -> list[str]:
    """Return the passages of some retrieval sets.

    Raises:
        NotFound: A set is not there.
        InputError: A line of it cannot be understood.
    """
    texts = (" ".join(passage.text.split()) for name in sets for passage in read_collection(folder / name).passages)
    return [text for text in texts if text]


def measure(
    folder: Path, passages: list[str], embedder: SentenceEmbedder, config: BenchConfig, progress: Progress
) -> Figures:
    """Ingest all, then sync after each kind of change."""
    data = DataDir(folder / "data")
    parsing = ParsingConfig()

    def take(source: Path, store: str, *, is_full: bool) -> tuple[float, IngestReport]:
        start = time.perf_counter()
        call: Callable[..., IngestReport] = ingest if is_full else sync
        report = call(
            data, store, source, embedder=embedder, chunking=config.chunking, parsing=parsing, progress=progress
        )
        return time.perf_counter() - start, report

    small = folder / "small"
    small.mkdir()
    (small / "one.md").write_text("# One\n\nA file to load every library with.\n", encoding="utf-8")
    take(small, "small", is_full=False)
    place = folder / "source"
    source = Source(place, passages, config)
    ingest_s, report = take(place, STORE, is_full=True)
    searcher = Searcher(data, make_embedder=lambda: embedder)
    searcher.search([STORE], passages[0][:80])
    kinds = {
        "a sentence changed": source.change,
        "every part changed": source.rewrite,
        "renamed": source.move,
        "removed and added": source.exchange,
        "nothing changed": source.leave,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    embedded: dict[str, int] = {}
    searches_ms = []
    for number in range(config.rounds):
        for kind, change in kinds.items():
            change()
            taken, done = take(place, STORE, is_full=False)
            seconds[kind].append(taken)
            embedded[kind] = done.embedded
            searches_ms.append(searcher.search([STORE], passages[number][:80]).timings_ms["total"])
    searcher.close()
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return Figures(
        files=config.files,
        chunks=report.chunks,
        changed_files=source.share,
        ingest_s=round(ingest_s, 2),
        sync_s={kind: round(value, 4) for kind, value in medians.items()},
        embedded=embedded,
        times_faster={kind: round(ingest_s / value, 1) for kind, value in medians.items()},
        first_search_ms=round(statistics.median(searches_ms), 1),
    )


if __name__ == "__main__":
    run_app("bench_sync", main)
