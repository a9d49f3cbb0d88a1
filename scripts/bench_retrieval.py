"""Measure retrieval on a labelled collection: `python scripts/bench_retrieval.py dataset=DIR [peers=langchain]`.

The collection is written as Markdown files, a passage each with its title as heading, and ingested into a throw-away
data directory as `retrieval/run.py action=ingest` would. Every arm then answers every query: words alone, vectors
alone, both, both with the reranker where `search.reranker` names one, and with `peers=langchain` the stack of
LangChain's tutorials with the same embedder, in a process and an environment of its own. Arms take turns query by
query, forwards and backwards. Hits of one passage count once. Does not know how anything is found.
"""

from core.entry import begin_program

begin_program()

import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, ContractError
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.beir import Collection, CorpusPassage, read_collection
from retrieval.config import ChunkingConfig, EmbedderConfig, ParsingConfig, SearchConfig
from retrieval.metrics import Quality, measure_quality

if TYPE_CHECKING:
    from retrieval.searcher import Searcher

STORE = "bench"
DEPTH = 20
"""Chunks that are asked for, so that ten different passages are among them."""
WARM_UP = 5
PEERS_SCRIPT = Path(__file__).with_name("bench_retrieval_peers.py")
SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()<>#+-.!|~=$&:"})


class Output(Enum):
    """How the figures are printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


class Peers(Enum):
    """What is measured beside Loam."""

    none = "none"
    langchain = "langchain"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_retrieval.py can be told.

    Attributes:
        dataset: Folder of a collection in BEIR's layout; required.
        peers: Nothing, or LangChain's usual stack.
        peers_python: The Python that has LangChain (`make bench-peers`).
        max_queries: The first so many queries of the file, as most reports count them; None takes all.
        enlarge_to: Passages; the collection is filled up with passages of its own whose sentences are shuffled.
        output: How the figures are printed.
        paths: Where the models are.
        embedder: The embedding model.
        chunking: How passages are cut.
        search: The arm `hybrid`; with `search.reranker`, of `hybrid_rerank` too.
    """

    dataset: str | None = None
    peers: Peers = Peers.none
    peers_python: str = ".venv-peers/bin/python"
    max_queries: int | None = None
    enlarge_to: int | None = None
    output: Output = Output.table
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key in ("max_queries", "enlarge_to"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}: wanted 1 or more, found {value}", param=key)


@dataclass(frozen=True, slots=True)
class Arm:
    """What one way of searching came to.

    Attributes:
        quality: Means over the queries.
        p50_ms: Median time of a query, its embedding included.
        p99_ms: Time that one query in a hundred exceeds.
        stages_ms: Median by stage, for arms of ours.
    """

    quality: Quality
    p50_ms: float
    p99_ms: float
    stages_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the figures flat."""
        return {**asdict(self.quality), "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "stages_ms": self.stages_ms}


def main(composed: DictConfig) -> None:
    """Ingest, search, and print the figures."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    if config.dataset is None:
        raise ConfigError("dataset: wanted a folder, found none. Give it: dataset=DIR", param="dataset")
    peers_python = Path(config.peers_python).absolute()
    if config.peers is Peers.langchain and not peers_python.is_file():
        raise ConfigError(
            f"peers_python: wanted a Python with LangChain at {peers_python}, found none. Make it: make bench-peers",
            param="peers_python",
        )
    collection = read_collection(Path(config.dataset))
    queries = pick_queries(collection, config.max_queries)
    passages = enlarge(collection.passages, config.enlarge_to)
    with tempfile.TemporaryDirectory(prefix="loam-bench-retrieval-") as folder:
        figures = measure(config, passages, queries, collection.judged, Path(folder))
    show({"dataset": collection.name, "passages": len(passages), "queries": len(queries), **figures}, config.output)


def pick_queries(collection: Collection, count: int | None) -> dict[str, str]:
    """Return the queries that have a relevant document, or the first so many of the file."""
    return dict(islice(collection.labelled_queries().items(), count))


def enlarge(passages: list[CorpusPassage], size: int | None) -> list[CorpusPassage]:
    """Return passages filled up to a size with copies whose words are shuffled: a haystack of the same words."""
    chance = random.Random(1)  # noqa: S311
    more = []
    for number in range(max(0, (size or 0) - len(passages))):
        words = passages[number % len(passages)].text.split()
        chance.shuffle(words)
        more.append(CorpusPassage(f"filler-{number}", "", " ".join(words) or "nothing"))
    return [*passages, *more]


def measure(
    config: BenchConfig,
    passages: list[CorpusPassage],
    queries: dict[str, str],
    judged: dict[str, dict[str, float]],
    folder: Path,
) -> dict[str, Any]:
    """Ingest into a folder of our own and let every arm answer every query."""
    from retrieval.searcher import Searcher

    data = link_models(Path(config.paths.data_dir), folder / "data")
    ingested = ingest_passages(config, data, passages, folder / "source")
    searchers = {name: Searcher(data, config.embedder, options) for name, options in list_arms(config.search).items()}
    peers = Langchain(config, passages, folder) if config.peers is Peers.langchain else None
    try:
        for searcher in searchers.values():
            searcher.warm_up([STORE])
        ids = {f"{number:07d}.md": passage.id for number, passage in enumerate(passages)}
        arms = answer_all(searchers, peers, queries, judged, ids)
    finally:
        for searcher in searchers.values():
            searcher.close()
        peer_figures = peers.close() if peers else {}
    return {
        **ingested,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **peer_figures,
        "arms": {name: arm.to_json() for name, arm in arms.items()},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("torch", "sentence-transformers", "faiss-cpu")},
    }


def link_models(source: Path, target: Path) -> DataDir:
    """Return an empty data directory that sees the models of another."""
    target.mkdir()
    (target / "models").symlink_to((source / "models").absolute())
    return DataDir(target)


def list_arms(search: SearchConfig) -> dict[str, SearchConfig]:
    """Return the settings of each arm of ours."""
    hybrid = replace(search, reranker=None)
    arms = {"bm25": replace(hybrid, dense_weight=0.0), "dense": replace(hybrid, dense_weight=1.0), "hybrid": hybrid}
    return {**arms, "hybrid_rerank": search} if search.reranker is not None else arms


def ingest_passages(config: BenchConfig, data: DataDir, passages: list[CorpusPassage], source: Path) -> dict[str, Any]:
    """Write the passages as files and ingest them; return how quickly that went and what it takes on disk.

    The embedder is warm; what is timed is the whole of `ingest`: reading, parsing, cutting, embedding, committing and
    saving the index.
    """
    from retrieval.embedding import open_embedder
    from retrieval.ingest import ingest

    source.mkdir()
    for number, passage in enumerate(passages):
        title = f"# {passage.title.translate(SPECIAL)}\n\n" if passage.title.strip() else ""
        (source / f"{number:07d}.md").write_text(f"{title}{passage.text.translate(SPECIAL)}\n", encoding="utf-8")
    embedder = open_embedder(data, config.embedder)
    embedder.embed_query("ready")
    start = time.perf_counter()
    report = ingest(data, STORE, source, embedder=embedder, chunking=config.chunking, parsing=ParsingConfig())
    seconds = time.perf_counter() - start
    sizes = [path.stat().st_size for path in data.indexes.rglob("*") if path.is_file()]
    return {
        "ingest_s": round(seconds, 2),
        "ingest_docs_per_s": round(report.ingested / seconds, 1),
        "failed": len(report.failures),
        "chunks": report.chunks,
        "index_bytes_per_chunk": round(sum(sizes) / max(1, report.chunks)),
        "database_bytes_per_chunk": round(data.database.stat().st_size / max(1, report.chunks)),
    }


class Langchain:
    """LangChain's process."""

    def __init__(self, config: BenchConfig, passages: list[CorpusPassage], folder: Path) -> None:
        """Start it; it ingests the passages."""
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(asdict(passage)) + "\n" for passage in passages), encoding="utf-8")
        model = DataDir(Path(config.paths.data_dir)).model(config.embedder.name)
        command = [config.peers_python, str(PEERS_SCRIPT), str(corpus), str(model)]
        self._log = (folder / "peers.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        ready = self._read()
        self.names: list[str] = ready["arms"]
        self._figures = {"langchain_ingest_s": ready["ingest_s"]}
        self._figures["langchain_ingest_docs_per_s"] = round(len(passages) / ready["ingest_s"], 1)

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._log.seek(0)
            raise ContractError(f"bench: LangChain's process ended early: {self._log.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def search(self, name: str, query: str) -> tuple[list[str], float]:
        """Return the ids that an arm found and its milliseconds."""
        assert self._process.stdin is not None  # noqa: S101  (asked for above)
        self._process.stdin.write(json.dumps({"arm": name, "query": query}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer["ids"], answer["ms"]

    def close(self) -> dict[str, Any]:
        """End it and return what it took to ingest."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return self._figures


def answer_all(
    searchers: dict[str, "Searcher"],
    peers: Langchain | None,
    queries: dict[str, str],
    judged: dict[str, dict[str, float]],
    ids: dict[str, str],
) -> dict[str, Arm]:
    """Let the arms take turns query by query, forwards and backwards, after a few that warm up."""
    names = [*searchers, *(peers.names if peers else [])]
    rankings: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in searchers}
    turns = [*list(queries.items())[:WARM_UP], *queries.items()]
    for number, (query, text) in enumerate(turns):
        for name in names if number % 2 else reversed(names):
            if name in searchers:
                start = time.perf_counter()
                result = searchers[name].search([STORE], text, DEPTH)
                elapsed_ms = (time.perf_counter() - start) * 1e3
                found = [ids[hit.file] for hit in result.hits]
            else:
                assert peers is not None  # noqa: S101  (its names come from it)
                found, elapsed_ms = peers.search(name, text)
                result = None
            rankings[name][query] = list(dict.fromkeys(found))
            if number < WARM_UP:
                continue
            times[name].append(elapsed_ms)
            for stage, value in result.timings_ms.items() if result else ():
                stages[name].setdefault(stage, []).append(value)
        if number % 200 == 0:
            print(f"{number} of {len(turns)} queries", file=sys.stderr, flush=True)
    return {
        name: Arm(
            measure_quality(rankings[name], judged),
            round(float(np.percentile(times[name], 50)), 2),
            round(float(np.percentile(times[name], 99)), 2),
            {stage: round(float(np.median(values)), 3) for stage, values in stages.get(name, {}).items()},
        )
        for name in names
    }


def show(figures: dict[str, Any], output: Output) -> None:
    """Print the figures."""
    if output is Output.json:
        print(json.dumps(figures))
        return
    columns = ["arm", "nDCG@10", "recall@10", "MRR@10", "p50 ms", "p99 ms"]
    rows = [
        [name, *(f"{arm[key]:.4f}" for key in ("ndcg_at_10", "recall_at_10", "mrr_at_10"))]
        + [f"{arm[key]:.1f}" for key in ("p50_ms", "p99_ms")]
        for name, arm in figures["arms"].items()
    ]
    title = f"{figures['dataset']}: {figures['passages']:,} passages, {figures['queries']:,} queries"
    rest = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    if output is Output.markdown:
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        print("\n" + "; ".join(f"{key} {value:,}" for key, value in rest.items()))
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(", ".join(f"{key} {value:,}" for key, value in rest.items()))


if __name__ == "__main__":
    run_app("bench_retrieval", main)
