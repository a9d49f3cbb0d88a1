"""Compare ways to find the nearest of many vectors: build time, memory, and query time at a recall.

    python scripts/bench_approximate.py size=200000 [queries=200] [output=json]

Beside our own lists stand FAISS's IVF with float32 and 8-bit vectors and HNSW over 8-bit vectors. Vectors and queries
are those of scripts/bench_index.py: real embeddings with jitter, real questions. Each way is set to the least effort
that finds 0.98 of the ten nearest, then timed, query by query. Not measured: filters, deletion, files.
"""

from core.entry import begin_program

begin_program()

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, check_ranges, load_config, run_app
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.approximate import make_lists
from retrieval.beir import read_collection
from retrieval.config import EmbedderConfig, IndexDevice, Output
from retrieval.dense import make_dense, make_run, search_dense
from retrieval.embedding import normalise_rows, open_embedder
from scripts.bench_index import JITTER, PASSAGES

TARGET = 0.98
DEPTH = 100
"""Vectors that are asked for, as search.candidates has it."""
RECALLED = 10
NEIGHBOURS = 32
"""Links of a vector in HNSW."""
_faiss: Any = faiss
console = Console(stderr=True)

Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_approximate.py can be told.

    Attributes:
        size: Vectors.
        source: Retrieval set whose passages and queries are taken.
        queries: Real questions that are asked.
        output: How the figures are printed.
        paths: Where the models are.
        embedder: The embedding model.
    """

    size: int = 200_000
    source: str = "../shared/data/squad_dev_a"
    queries: int = 200
    output: Output = Output.table
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges("bench_approximate", {"size": (self.size, 1000, 5_000_000), "queries": (self.queries, 1, 10_000)})


@dataclass(frozen=True, slots=True)
class Figures:
    """What one way came to.

    Attributes:
        way: Its name.
        build_s: Seconds to build it, tuning included for ours.
        bytes_per_vector: That it holds beside the float32 vectors.
        effort: What it looks at: vectors, lists, or candidates of the graph.
        recall: Of the ten nearest.
        p50_ms: Of a query for a hundred.
        p99_ms: Likewise.
    """

    way: str
    build_s: float
    bytes_per_vector: float
    effort: int
    recall: float
    p50_ms: float
    p99_ms: float


def main(composed: DictConfig) -> None:
    """Build and measure every way."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    vectors, queries = make_vectors(config)
    index = make_dense([make_run(vectors, np.arange(len(vectors)), IndexDevice.cpu)])
    wanted = [search_dense(index, query, RECALLED)[0] for query in queries]
    figures: list[Figures] = []
    try:
        exact: Search = lambda query, _: search_dense(index, query, DEPTH)[0]  # noqa: E731
        figures.append(time_way("exact", 0.0, 0.0, len(vectors), exact, queries, wanted))
        for measure in (measure_lists, measure_ivf, measure_hnsw):
            figures.extend(measure(vectors, queries, wanted))
            console.print(figures[-1])
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far follows")
    show(figures, config.output)


def make_vectors(config: BenchConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (size, dimension) vectors and (queries, dimension) questions, float32 unit rows."""
    collection = read_collection(Path(config.source))
    embedder = open_embedder(DataDir(Path(config.paths.data_dir)), config.embedder)
    real = embedder.embed_windows([passage.text for passage in collection.passages[:PASSAGES]])
    questions = [embedder.embed_query(query) for query in list(collection.queries.values())[: config.queries]]
    chance = np.random.default_rng(0)
    vectors = np.empty((config.size, real.shape[1]), dtype=np.float32)
    for start in range(0, config.size, 20_000):
        block = vectors[start : start + 20_000]
        noise = chance.standard_normal(block.shape, dtype=np.float32) * np.float32(JITTER / np.sqrt(real.shape[1]))
        block[:] = normalise_rows(real[chance.integers(len(real), size=len(block))] + noise)
    return vectors, np.stack(questions)


def measure_lists(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], wanted: list[NDArray[np.int64]]
) -> list[Figures]:
    """Measure our own lists, as they tune themselves."""
    start = time.perf_counter()
    lists = make_lists(vectors)
    build_s = time.perf_counter() - start
    index = make_dense([make_run(vectors, np.arange(len(vectors)), IndexDevice.cpu, lists)])
    extra = (lists.rows.nbytes + lists.centroids.nbytes) / len(vectors)
    search: Search = lambda query, _: search_dense(index, query, DEPTH)[0]  # noqa: E731
    return [time_way(f"lists ({len(lists.centroids)})", build_s, extra, lists.budget, search, queries, wanted)]


def measure_ivf(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], wanted: list[NDArray[np.int64]]
) -> list[Figures]:
    """Measure FAISS's IVF with as many lists as ours has, float32 and 8 bits."""
    count = _count_lists(len(vectors))
    figures = []
    for name, size in ((f"IVF{count},Flat", 4.0), (f"IVF{count},SQ8", 1.0)):
        start = time.perf_counter()
        index = _faiss.index_factory(vectors.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, len(vectors) // (64 * count))])
        index.add(vectors)
        build_s = time.perf_counter() - start

        def search(query: NDArray[np.float32], effort: int, index: Any = index) -> NDArray[np.int64]:
            found: NDArray[np.int64] = index.search(query[None, :], DEPTH, params=_probe(effort))[1][0]
            return found

        effort = find_effort(search, queries, wanted, count)
        extra = size * vectors.shape[1] + 8
        figures.append(time_way(name, build_s, extra, effort, search, queries, wanted))
        del index
    return figures


def _count_lists(size: int) -> int:
    return int(2 ** round(np.log2(2 * np.sqrt(size))))


def _probe(effort: int) -> Any:
    return _faiss.SearchParametersIVF(nprobe=effort)


def measure_hnsw(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], wanted: list[NDArray[np.int64]]
) -> list[Figures]:
    """Measure FAISS's HNSW over 8-bit vectors."""
    start = time.perf_counter()
    index = _faiss.index_factory(vectors.shape[1], f"HNSW{NEIGHBOURS},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(1, len(vectors) // 50_000)])
    index.add(vectors)
    build_s = time.perf_counter() - start

    def search(query: NDArray[np.float32], effort: int) -> NDArray[np.int64]:
        parameters = _faiss.SearchParametersHNSW(efSearch=max(effort, DEPTH))
        found: NDArray[np.int64] = index.search(query[None, :], DEPTH, params=parameters)[1][0]
        return found

    effort = find_effort(search, queries, wanted, 4096)
    extra = vectors.shape[1] + 8 * NEIGHBOURS + 12
    return [time_way(f"HNSW{NEIGHBOURS},SQ8", build_s, extra, effort, search, queries, wanted)]


def find_effort(search: Search, queries: NDArray[np.float32], wanted: list[NDArray[np.int64]], most: int) -> int:
    """Return the least effort, a power of two, that reaches the target, or the most."""
    effort = 1
    while effort < most and measure_recall(search, effort, queries, wanted) < TARGET:
        effort *= 2
    return min(effort, most)


def measure_recall(search: Search, effort: int, queries: NDArray[np.float32], wanted: list[NDArray[np.int64]]) -> float:
    """Return the share of the ten nearest that a search for a hundred finds; all of these are scored exactly later."""
    found = sum(len(np.intersect1d(search(query, effort), best)) for query, best in zip(queries, wanted, strict=True))
    return found / (RECALLED * len(queries))


def time_way(
    way: str,
    build_s: float,
    extra: float,
    effort: int,
    search: Search,
    queries: NDArray[np.float32],
    wanted: list[NDArray[np.int64]],
) -> Figures:
    """Time a way, query by query."""
    recall = measure_recall(search, effort, queries, wanted)
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query, effort)
        times.append((time.perf_counter() - start) * 1e3)
    p50_ms, p99_ms = (round(float(np.percentile(times, share)), 2) for share in (50, 99))
    return Figures(way, round(build_s, 1), round(extra, 1), effort, round(recall, 4), p50_ms, p99_ms)


def show(figures: list[Figures], output: Output) -> None:
    """Print the figures."""
    if output is Output.json:
        sys.stdout.write(json.dumps([asdict(one) for one in figures]) + "\n")
        return
    table = Table(title="The nearest of many vectors")
    for name in Figures.__dataclass_fields__:
        table.add_column(name, justify="left" if name == "way" else "right")
    for one in figures:
        table.add_row(*(str(value) for value in asdict(one).values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    run_app("bench_approximate", main)
