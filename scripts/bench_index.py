"""Measure how costs grow with a store: committing, building and opening its index, memory, query time and recall.

    python scripts/bench_index.py sizes=[1000,10000,50000,200000,1000000] [queries=100] [plot=FILE] [output=json]

Chunks are synthetic: real embeddings with jitter, and texts of real words drawn by their frequency. They are committed
to a database of their own, where no model embeds them, and searched as `scripts/search.py` searches. Building and
asking have a process each, so that their memory is their own. Interrupt it any time: what was measured is printed.
Recall is of the search by vector, against the exact one; whether passages answer is not measured.
"""

from core.entry import begin_program

begin_program()

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, check_ranges, load_config, run_app
from core.errors import ContractError
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.beir import read_collection
from retrieval.config import EmbedderConfig, IndexDevice, Output, SearchConfig
from retrieval.database import open_database
from retrieval.dense import search_dense
from retrieval.embedding import SentenceEmbedder, normalise_rows, open_embedder
from retrieval.searcher import Searcher
from retrieval.snapshot import load_snapshot, open_index, snapshot_folder
from retrieval.store import NewChunk, NewDocument, commit_documents, find_store, make_store
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans
from scripts.bench_retrieval import link_models

STORE = "bench"
WORDS_PER_CHUNK = 80
CHUNKS_PER_DOCUMENT = 100
BATCH = 20_000
"""Chunks that are made at once."""
PASSAGES = 500
"""Real passages whose embeddings are jittered."""
JITTER = 0.6
"""Length of the noise that is added to a unit vector: the cosine of two chunks of one passage is about 0.74."""
RECALLED = 10
"""Nearest chunks that recall is about."""
DEPTH = 100
"""Candidates of each side, as search.candidates has it."""
FOLLOWED = 20
"""Chunks that are added when following a change is measured."""
PEERS_SCRIPT = Path(__file__).with_name("bench_retrieval_peers.py")
PEER = "langchain_ensemble"
STAGES = ("embed", "lexical", "dense", "read")
console = Console(stderr=True)


class Part(Enum):
    """What one process of the bench does."""

    all = "all"
    make = "make"
    ask = "ask"
    peers = "peers"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_index.py can be told.

    Attributes:
        sizes: Chunks of each store.
        source: Retrieval set whose passages and queries are taken.
        words: Of each chunk; 80 are about 109 of the embedder's tokens, 74 about 100.
        queries: Real questions that are asked.
        peer_sizes: Sizes at which LangChain's ensemble of BM25 and Chroma is asked too, over the same chunks.
        peers_python: The Python that has LangChain (`make bench-peers`).
        part: Set by the bench itself, for the processes that it starts.
        workspace: Set by the bench itself, for the processes that it starts.
        plot: PNG file to draw into; null: none.
        output: How the figures are printed.
        paths: Where the models are.
        embedder: The embedding model.
        search: How chunks are found.
    """

    sizes: list[int] = field(default_factory=lambda: [1000, 10_000, 50_000, 200_000, 1_000_000])
    source: str = "../shared/data/squad_dev_a"
    words: int = WORDS_PER_CHUNK
    queries: int = 100
    peer_sizes: list[int] = field(default_factory=list)
    peers_python: str = ".venv-peers/bin/python"
    part: Part = Part.all
    workspace: str | None = None
    plot: str | None = None
    output: Output = Output.table
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        ranges: dict[str, tuple[float | None, float, float]] = {
            f"sizes[{place}]": (size, 100, 10_000_000) for place, size in enumerate(self.sizes)
        }
        check_ranges("bench_index", {**ranges, "words": (self.words, 1, 400), "queries": (self.queries, 1, 10_000)})


@dataclass(frozen=True, slots=True)
class Figures:
    """What the bench found for one size.

    Attributes:
        chunks: In the store.
        commit_s: Seconds to commit them to the database, vectors given.
        make_s: Seconds to make the index from the database and to save it.
        make_bytes: Most memory that the process of making it held beyond what it began with.
        open_s: Seconds to open it, every byte checked.
        follow_ms: Milliseconds that the first search takes longer after a few chunks came.
        index_bytes: Of its files.
        memory_bytes: That opening it and the queries added to the process, mapped files included.
        embed_p50_ms: Of embedding a query.
        lexical_p50_ms: Of the search by words.
        dense_p50_ms: Of the search by vector.
        read_p50_ms: Of reading the hits' texts.
        rerank_p50_ms: Of judging the best `search.rerank_depth` hits; None without `search.reranker`.
        p50_ms: Of a whole hybrid search for ten hits.
        p99_ms: Of a whole hybrid search for ten hits.
        exact_p50_ms: Of a search by vector that looks at everything.
        looked_at: Vectors that a search by vector looks at, at least.
        recall_10: Share of the ten nearest chunks that are among the ten that the search by vector finds.
        recall_100: The same of a hundred, as many as each side brings for fusion.
        peers_p50_ms: Of LangChain's ensemble; None where it was not asked.
    """

    chunks: int
    commit_s: float
    make_s: float
    make_bytes: int
    open_s: float
    follow_ms: float
    index_bytes: int
    memory_bytes: int
    embed_p50_ms: float
    lexical_p50_ms: float
    dense_p50_ms: float
    read_p50_ms: float
    rerank_p50_ms: float | None
    p50_ms: float
    p99_ms: float
    exact_p50_ms: float
    looked_at: int
    recall_10: float
    recall_100: float
    peers_p50_ms: float | None = None


def main(composed: DictConfig) -> None:
    """Measure every size and print what was found."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    models = DataDir(Path(config.paths.data_dir))
    if config.workspace is not None:
        folder, size = Path(config.workspace), config.sizes[0]
        if config.part is Part.make:
            found = make(size, folder)
        elif config.part is Part.ask:
            found = ask(size, folder, models, config)
        else:
            found = ask_peers(size, folder, models, config)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    figures: list[Figures] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-index-") as workspace:
            prepare(Path(workspace), config, open_embedder(models, config.embedder))
            figures.extend(measure_sizes(config, workspace))
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far follows")
    show(figures, config)


def prepare(folder: Path, config: BenchConfig, embedder: SentenceEmbedder) -> None:
    """Write what every size is made of: embeddings and words of real passages, and real questions.

    Raises:
        NotFound: The retrieval set is not there.
    """
    collection = read_collection(Path(config.source))
    texts = [passage.text for passage in collection.passages[:PASSAGES]]
    queries = list(collection.queries.values())[: config.queries]
    np.save(folder / "vectors.npy", embedder.embed_windows(texts), allow_pickle=False)
    identity = asdict(embedder.identity)
    words = " ".join(texts).split()
    made_of = {"words": words, "words_per_chunk": config.words, "queries": queries, "embedder": identity}
    (folder / "texts.json").write_text(json.dumps(made_of))


def measure_sizes(config: BenchConfig, folder: str) -> Iterator[Figures]:
    """Yield the figures of each size as they come; the database of one is removed before the next is made."""
    for size in config.sizes:
        parts = [Part.make, Part.ask, *([Part.peers] if size in config.peer_sizes else [])]
        with tempfile.TemporaryDirectory(prefix=f"{size}-", dir=folder) as workspace:
            for name in ("vectors.npy", "texts.json"):
                (Path(workspace) / name).symlink_to(Path(folder) / name)
            link_models(Path(config.paths.data_dir), Path(workspace) / "data")
            console.print(f"{size} chunks …")
            found = [run_part(part, size, workspace) for part in parts]
            yield Figures(chunks=size, **{name: value for one in found for name, value in one.items()})


def run_part(part: Part, size: int, workspace: str) -> dict[str, Any]:
    """Run a part for one size in a process of its own; return its figures.

    Raises:
        ContractError: The process failed; its words are in the terminal.
    """
    options = [option for option in sys.argv[1:] if not option.startswith(("sizes=", "output=", "plot="))]
    command = [
        *(sys.executable, __file__, *options),
        *(f"sizes=[{size}]", f"part={part.value}", f"workspace={workspace}"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ContractError(f"{size} chunks: the process that measured ended with {done.returncode}; see above.")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make_chunks(size: int, folder: Path, first: int = 1) -> Iterator[NewChunk]:
    """Yield synthetic chunks, the same ones every time."""
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    made_of = json.loads((folder / "texts.json").read_text())
    words, length = np.array(made_of["words"]), made_of["words_per_chunk"]
    for start in range(first, first + size, BATCH):
        chance = np.random.default_rng(start)
        count = min(BATCH, first + size - start)
        noise = chance.standard_normal((count, vectors.shape[1]), dtype=np.float32)
        noise *= JITTER / np.sqrt(vectors.shape[1])
        rows = normalise_rows(vectors[chance.integers(len(vectors), size=count)] + noise)
        texts = words[chance.integers(len(words), size=(count, length))].tolist()
        for place, drawn in enumerate(texts):
            text = f"{' '.join(drawn)} item{start + place}"
            chunk_vectors = ChunkVectors(rows[place : place + 1], no_spans(rows.shape[1]))
            yield NewChunk(0, len(text), None, None, text, chunk_vectors)


def make_documents(size: int, folder: Path, first: int = 1) -> Iterator[list[NewDocument]]:
    """Yield batches of synthetic documents."""
    batch: list[NewDocument] = []
    chunks: list[NewChunk] = []
    for number, chunk in enumerate(make_chunks(size, folder, first), start=first):
        chunks.append(chunk)
        if len(chunks) == CHUNKS_PER_DOCUMENT or number == first + size - 1:
            name = f"{number}.txt"
            digest = hashlib.sha256(name.encode()).hexdigest()
            batch.append(NewDocument(name, digest, "bench", 1, " ", tuple(chunks)))
            chunks = []
        if len(batch) * CHUNKS_PER_DOCUMENT >= BATCH or (batch and number == first + size - 1):
            yield batch
            batch = []


def make(size: int, folder: Path) -> dict[str, Any]:
    """Commit a store's chunks, and make and save its index."""
    data = DataDir(folder / "data")
    engine = open_database(data.database)
    identity = EmbedderIdentity(**json.loads((folder / "texts.json").read_text())["embedder"])
    store = make_store(engine, STORE, identity)
    commit_s, done = 0.0, 0
    for batch in make_documents(size, folder):
        start = time.perf_counter()
        commit_documents(engine, store, batch)
        commit_s += time.perf_counter() - start
        done += sum(len(document.chunks) for document in batch)
        console.print(f"  {done} of {size}")
    before = _read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.perf_counter()
    open_index(engine, data, find_store(engine, STORE), IndexDevice.cpu)
    make_s = time.perf_counter() - start
    engine.dispose()
    make_bytes = _read_memory("VmHWM") - before
    return {"commit_s": round(commit_s, 2), "make_s": round(make_s, 2), "make_bytes": make_bytes}


def ask(size: int, folder: Path, models: DataDir, config: BenchConfig) -> dict[str, Any]:
    """Open and query a store's index, and follow a change of it."""
    data = DataDir(folder / "data")
    queries: list[str] = json.loads((folder / "texts.json").read_text())["queries"]
    embedder = open_embedder(models, config.embedder)
    embedder.embed_query("ready")
    before, start = _read_memory("VmRSS"), time.perf_counter()
    searcher = Searcher(data, config.embedder, config.search, make_embedder=lambda: embedder)
    searcher.warm_up([STORE])
    open_s = time.perf_counter() - start
    for query in queries[:5]:
        searcher.search([STORE], query, 10)
    timings = [searcher.search([STORE], query, 10).timings_ms for query in queries]
    memory_bytes = _read_memory("VmRSS") - before
    totals = [one["total"] for one in timings]
    stages = {f"{name}_p50_ms": _median_of(timings, name) for name in STAGES}
    found = {
        "open_s": round(open_s, 3),
        "memory_bytes": memory_bytes,
        **stages,
        "rerank_p50_ms": None if config.search.reranker is None else _median_of(timings, "rerank"),
        "p50_ms": round(float(np.median(totals)), 2),
        "p99_ms": round(float(np.percentile(totals, 99)), 2),
        **_examine_index(data, [embedder.embed_query(query) for query in queries]),
        "follow_ms": round(_follow(searcher, data, size, folder, queries[0]), 2),
    }
    searcher.close()
    return found


def _median_of(timings: list[dict[str, float]], stage: str) -> float:
    return round(float(np.median([one[stage] for one in timings])), 2)


def ask_peers(size: int, folder: Path, models: DataDir, config: BenchConfig) -> dict[str, Any]:
    """Give the same texts and vectors to LangChain's ensemble, and ask it the same.

    Raises:
        ContractError: It failed; its words are in the terminal.
    """
    vectors = np.empty((size, np.load(folder / "vectors.npy", mmap_mode="r").shape[1]), dtype=np.float32)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for place, chunk in enumerate(make_chunks(size, folder)):
            vectors[place] = chunk.vectors.windows[0]
            file.write(json.dumps({"id": str(place), "title": "", "text": chunk.text}) + "\n")
    np.save(folder / "given.npy", vectors, allow_pickle=False)
    queries: list[str] = json.loads((folder / "texts.json").read_text())["queries"]
    asked = "".join(json.dumps({"arm": PEER, "query": query}) + "\n" for query in [*queries[:5], *queries])
    command = [
        *(config.peers_python, str(PEERS_SCRIPT), str(folder / "corpus.jsonl")),
        *(str(models.models / config.embedder.name), str(folder / "given.npy")),
    ]
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ContractError(f"{PEER}: its process ended with {done.returncode}; see above.")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {"peers_p50_ms": round(float(np.median([answer["ms"] for answer in answers[6:]])), 2)}


def _examine_index(data: DataDir, vectors: list[NDArray[np.float32]]) -> dict[str, Any]:
    """Return the size of an index's files, and how exact and how much slower its search by vector is."""
    engine = open_database(data.database)
    store = find_store(engine, STORE)
    engine.dispose()
    folder = snapshot_folder(data, store)
    index = load_snapshot(folder, store, IndexDevice.cpu)
    if index is None or index.dense is None:
        raise ContractError("the snapshot that was just saved could not be opened. Check the disk.")
    found, times = [0, 0], []
    for vector in vectors:
        start = time.perf_counter()
        wanted, _ = search_dense(index.dense, vector, DEPTH, exact=True)
        times.append((time.perf_counter() - start) * 1e3)
        places, _ = search_dense(index.dense, vector, DEPTH)
        for number, depth in enumerate((RECALLED, DEPTH)):
            found[number] += len(np.intersect1d(wanted[:depth], places[:depth]))
    looked_at = [
        len(run.owners) if run.lists is None or not run.lists.is_worthwhile else run.lists.budget
        for run in index.dense.runs
    ]
    return {
        "looked_at": sum(looked_at),
        "exact_p50_ms": round(float(np.median(times)), 2),
        "recall_10": round(found[0] / (RECALLED * len(vectors)), 4),
        "recall_100": round(found[1] / (DEPTH * len(vectors)), 4),
        "index_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _follow(searcher: Searcher, data: DataDir, size: int, folder: Path, query: str) -> float:
    """Return the milliseconds until a search knows of a few more chunks."""
    engine = open_database(data.database)
    for batch in make_documents(FOLLOWED, folder, first=size + 1):
        commit_documents(engine, find_store(engine, STORE), batch)
    engine.dispose()
    result = searcher.search([STORE], query, 10)
    if result.searched[0].chunks != size + FOLLOWED:
        raise ContractError(f"wanted {size + FOLLOWED} chunks, found {result.searched[0].chunks}")
    return result.timings_ms["refresh"]


def _read_memory(name: str) -> int:
    """Return the resident bytes of this process, mapped files included: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def show(found: list[Figures], config: BenchConfig) -> None:
    """Print the figures, and draw them where that is wanted."""
    if config.plot is not None and found:
        draw(found, Path(config.plot))
    if config.output is Output.json:
        sys.stdout.write(json.dumps([asdict(figures) for figures in found]) + "\n")
        return
    table = Table("", title="Cost against size")
    for figures in found:
        table.add_column(f"{figures.chunks:,}", justify="right")
    for name in [*Figures.__dataclass_fields__][1:]:
        values = [asdict(figures)[name] for figures in found]
        if name.endswith("_bytes"):
            table.add_row(f"{name.removesuffix('_bytes')} MiB", *(f"{value / 2**20:.1f}" for value in values))
        else:
            table.add_row(name, *("" if value is None else f"{value:g}" for value in values))
    Console(width=120).print(table)


def draw(found: list[Figures], path: Path) -> None:
    """Draw latency, memory and making against size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [figures.chunks for figures in found]
    lines = {
        "Latency, ms": {"query p50": "p50_ms", "query p99": "p99_ms", "vectors p50": "dense_p50_ms"}
        | {"words p50": "lexical_p50_ms", "embedding p50": "embed_p50_ms"},
        "Memory and files, MiB": {"searching": "memory_bytes", "making": "make_bytes", "index files": "index_bytes"},
        "Committing, making, opening, s": {"commit": "commit_s", "make": "make_s", "open": "open_s"},
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for one, (title, shown) in zip(axes, lines.items(), strict=True):
        for label, name in shown.items():
            scale = 2**20 if name.endswith("_bytes") else 1
            one.plot(sizes, [asdict(figures)[name] / scale for figures in found], marker="o", label=label)
        one.set(title=title, xscale="log", yscale="log", xlabel="chunks")
        one.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    run_app("bench_index", main)
