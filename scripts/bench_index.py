"""Measure how search costs grow with a store: query time, memory, making, following and opening of the index.

    python scripts/bench_index.py sizes=[1000,10000,50000,100000,1000000] [queries=100] [plot=FILE] [output=json]

Chunks are synthetic: real embeddings with jitter, and texts of real words drawn by their frequency. A query is embedded
and searched by words and by vector; reading the texts of the hits is not counted. Each size is measured in a process of
its own. Interrupt it any time: what was measured is printed. Does not measure quality: the search is exact.
"""

from core.offline import switch_offline

switch_offline()

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ContractError
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.beir import read_collection
from retrieval.config import EmbedderConfig, IndexDevice, Output, check_ranges
from retrieval.dense import gather_candidates
from retrieval.embedding import SentenceEmbedder, normalise_rows, open_embedder
from retrieval.lexical import pick_best, score_lexical
from retrieval.runs import ChunkRun, build_chunk_run, join_runs
from retrieval.snapshot import StoreIndex, load_snapshot, make_index, save_snapshot, snapshot_folder
from retrieval.store import ChunkRow, EmbedderIdentity, Store
from retrieval.vectors import ChunkVectors, no_spans

WORDS_PER_CHUNK = 80
BATCH = 20_000
"""Chunks that are made at once."""
PASSAGES = 500
"""Real passages whose embeddings are jittered."""
JITTER = 0.6
"""Length of the noise that is added to a unit vector: the cosine of two chunks of one passage is about 0.74."""
DEPTH = 100
"""Candidates of each side, as search.candidates has it."""
FOLLOWED = 20
"""Chunks that are added when following a change is measured."""
console = Console(stderr=True)


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_index.py can be told.

    Attributes:
        sizes: Chunks of each store.
        source: Retrieval set whose passages and queries are taken.
        queries: Real questions that are asked.
        workspace: Set by the bench itself, for the process that measures one size.
        plot: PNG file to draw into; null: none.
        output: How the figures are printed.
        paths: Where the models are.
        embedder: The embedding model.
    """

    sizes: list[int] = field(default_factory=lambda: [1000, 10_000, 50_000, 100_000, 1_000_000])
    source: str = "../shared/data/squad_dev_a"
    queries: int = 100
    workspace: str | None = None
    plot: str | None = None
    output: Output = Output.table
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        ranges: dict[str, tuple[float | None, float, float]] = {
            f"sizes[{place}]": (size, 100, 10_000_000) for place, size in enumerate(self.sizes)
        }
        check_ranges("bench_index", {**ranges, "queries": (self.queries, 1, 10_000)})


@dataclass(frozen=True, slots=True)
class Figures:
    """What the bench found for one size.

    Attributes:
        chunks: In the store.
        make_s: Seconds to make the index from rows, texts and vectors given.
        save_s: Seconds to save it.
        open_s: Seconds to open it, every byte checked.
        follow_ms: Milliseconds to append a few chunks to it, so that they are found.
        index_bytes: Of its files.
        memory_bytes: That opening it and the queries added to the process, mapped files included.
        embed_p50_ms: Of embedding a query.
        lexical_p50_ms: Of the search by words.
        dense_p50_ms: Of the search by vector.
        p50_ms: Of a query.
        p99_ms: Of a query.
    """

    chunks: int
    make_s: float
    save_s: float
    open_s: float
    follow_ms: float
    index_bytes: int
    memory_bytes: int
    embed_p50_ms: float
    lexical_p50_ms: float
    dense_p50_ms: float
    p50_ms: float
    p99_ms: float


def main(composed: DictConfig) -> None:
    """Measure every size and print what was found."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    models = DataDir(Path(config.paths.data_dir))
    embedder = open_embedder(models, config.embedder)
    if config.workspace is not None:
        figures = measure_size(config.sizes[0], Path(config.workspace), embedder)
        sys.stdout.write(json.dumps(asdict(figures)) + "\n")
        return
    found: list[Figures] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-index-") as folder:
            prepare(Path(folder), config, embedder)
            for size in config.sizes:
                console.print(f"{size} chunks …")
                found.append(run_size(size, folder))
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far follows")
    show(found, config)


def prepare(folder: Path, config: BenchConfig, embedder: SentenceEmbedder) -> None:
    """Write what every size is made of: embeddings and words of real passages, and real questions.

    Raises:
        NotFound: The retrieval set is not there.
    """
    collection = read_collection(Path(config.source))
    texts = [passage.text for passage in collection.passages[:PASSAGES]]
    queries = list(collection.queries.values())[: config.queries]
    np.save(folder / "vectors.npy", embedder.embed_windows(texts), allow_pickle=False)
    (folder / "texts.json").write_text(json.dumps({"words": " ".join(texts).split(), "queries": queries}))


def run_size(size: int, folder: str) -> Figures:
    """Measure a size in a process of its own.

    Raises:
        ContractError: The process failed; its words are in the message.
    """
    options = [option for option in sys.argv[1:] if not option.startswith(("sizes=", "output=", "plot="))]
    command = [sys.executable, __file__, *options, f"sizes=[{size}]", f"workspace={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ContractError(f"{size} chunks: the process that measured ended with {done.returncode}; see above.")
    return Figures(**json.loads(done.stdout))


def make_rows(size: int, folder: Path, first: int = 1) -> Iterator[list[ChunkRow]]:
    """Yield synthetic chunks in batches, the same ones every time."""
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    words = np.array(json.loads((folder / "texts.json").read_text())["words"])
    for start in range(first, first + size, BATCH):
        chance = np.random.default_rng(start)
        count = min(BATCH, first + size - start)
        noise = chance.standard_normal((count, vectors.shape[1]), dtype=np.float32)
        noise *= JITTER / np.sqrt(vectors.shape[1])
        rows = normalise_rows(vectors[chance.integers(len(vectors), size=count)] + noise)
        texts = words[chance.integers(len(words), size=(count, WORDS_PER_CHUNK))].tolist()
        yield [
            ChunkRow(
                start + place,
                None,
                f"{' '.join(text)} item{start + place}",
                ChunkVectors(rows[place : place + 1], no_spans(rows.shape[1])),
            )
            for place, text in enumerate(texts)
        ]


def measure_size(size: int, folder: Path, embedder: SentenceEmbedder) -> Figures:
    """Make, save, open, follow and query an index of one size."""
    identity = EmbedderIdentity("bench", embedder.identity.dimension, "bench")
    store = Store(size, "bench", identity, 1)
    data = DataDir(folder / "data")
    make_s, save_s = _make_and_save(size, folder, store, data)
    queries = json.loads((folder / "texts.json").read_text())["queries"]
    embedder.embed_query("ready")
    before, start = _read_memory(), time.perf_counter()
    index = load_snapshot(snapshot_folder(data, store), store, IndexDevice.cpu)
    open_s = time.perf_counter() - start
    if index is None:
        raise ContractError("the snapshot that was just saved could not be opened. Check the disk.")
    for query in queries[:5]:
        ask(index, query, embedder)
    stages = np.array([ask(index, query, embedder) for query in queries])
    memory_bytes = _read_memory() - before
    totals = stages.sum(axis=1)
    medians = np.median(stages, axis=0)
    files = snapshot_folder(data, store).iterdir()
    return Figures(
        chunks=size,
        make_s=round(make_s, 2),
        save_s=round(save_s, 2),
        open_s=round(open_s, 3),
        follow_ms=round(_follow(index, folder), 2),
        index_bytes=sum(path.stat().st_size for path in files),
        memory_bytes=memory_bytes,
        embed_p50_ms=round(float(medians[0]), 2),
        lexical_p50_ms=round(float(medians[1]), 2),
        dense_p50_ms=round(float(medians[2]), 2),
        p50_ms=round(float(np.median(totals)), 2),
        p99_ms=round(float(np.percentile(totals, 99)), 2),
    )


def _make_and_save(size: int, folder: Path, store: Store, data: DataDir) -> tuple[float, float]:
    """Return seconds of making an index, the making of its rows not counted, and of saving it."""
    make_s = 0.0
    runs: list[ChunkRun] = []
    for rows in make_rows(size, folder):
        start = time.perf_counter()
        runs.append(build_chunk_run(rows, IndexDevice.cpu))
        make_s += time.perf_counter() - start
        console.print(f"  {sum(len(run.numbers) for run in runs)} of {size}")
    start = time.perf_counter()
    runs, live = join_runs(runs, np.ones(size, dtype=np.bool_), IndexDevice.cpu)
    index = make_index(store, runs, live, size)
    make_s += time.perf_counter() - start
    start = time.perf_counter()
    save_snapshot(index, data)
    return make_s, time.perf_counter() - start


def ask(index: StoreIndex, query: str, embedder: SentenceEmbedder) -> tuple[float, float, float]:
    """Search as a Searcher does; return milliseconds of embedding, words and vectors."""
    marks = [time.perf_counter()]
    vector = embedder.embed_query(query)
    marks.append(time.perf_counter())
    by_words = pick_best(score_lexical(index.lexical, query), DEPTH)
    marks.append(time.perf_counter())
    if index.dense is not None:
        gather_candidates(index.dense, vector, DEPTH, by_words)
    marks.append(time.perf_counter())
    embed, words, vectors = np.diff(marks) * 1e3
    return float(embed), float(words), float(vectors)


def _follow(index: StoreIndex, folder: Path) -> float:
    """Return milliseconds until a few more chunks can be found."""
    rows = next(make_rows(FOLLOWED, folder, first=index.last + 1))
    start = time.perf_counter()
    runs = [*index.runs, build_chunk_run(rows, IndexDevice.cpu)]
    live: NDArray[np.bool_] = np.ones(len(index.slots) + FOLLOWED, dtype=np.bool_)
    make_index(index.store, runs, live, rows[-1].id)
    return (time.perf_counter() - start) * 1e3


def _read_memory() -> int:
    """Return the resident bytes of this process, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def show(found: list[Figures], config: BenchConfig) -> None:
    """Print the figures, and draw them where that is wanted."""
    if config.plot is not None and found:
        draw(found, Path(config.plot))
    if config.output is Output.json:
        sys.stdout.write(json.dumps([asdict(figures) for figures in found]) + "\n")
        return
    table = Table(title="Cost against size")
    names = [*Figures.__dataclass_fields__]
    for name in names:
        table.add_column(name.removesuffix("_bytes") + (" MiB" if name.endswith("_bytes") else ""), justify="right")
    for figures in found:
        values = asdict(figures)
        table.add_row(
            *(f"{values[name] / 2**20:.1f}" if name.endswith("_bytes") else f"{values[name]:g}" for name in names)
        )
    Console(width=160).print(table)


def draw(found: list[Figures], path: Path) -> None:
    """Draw latency, memory and making against size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    sizes = [figures.chunks for figures in found]
    for name, label in (
        ("p50_ms", "query p50"),
        ("p99_ms", "query p99"),
        ("dense_p50_ms", "vectors"),
        ("lexical_p50_ms", "words"),
    ):
        axes[0].plot(sizes, [getattr(figures, name) for figures in found], marker="o", label=label)
    axes[0].set(title="Latency, ms")
    axes[1].plot(sizes, [figures.memory_bytes / 2**20 for figures in found], marker="o", label="memory")
    axes[1].plot(sizes, [figures.index_bytes / 2**20 for figures in found], marker="o", label="files")
    axes[1].set(title="Memory and files, MiB")
    for name, label in (("make_s", "make"), ("save_s", "save"), ("open_s", "open")):
        axes[2].plot(sizes, [getattr(figures, name) for figures in found], marker="o", label=label)
    axes[2].set(title="Making, saving, opening, s")
    for one in axes:
        one.set(xscale="log", yscale="log", xlabel="chunks")
        one.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_app("bench_index", main)
