"""Compare engines for search by words: ours, bm25s, tantivy and SQLite's FTS5.

    python scripts/bench_lexical.py [sizes=[100000]] [engines=[loam,tantivy]] [output=json]      after: make bench-peers

Quality is nDCG@10 on labelled collections; speed, memory and single changes are measured on synthetic texts of real
words drawn by their frequency, those of scripts/bench_index.py. A change is a batch of 20 documents and the query that
sees it. Each engine has a process of its own. Interrupt it any time: what was measured is printed.
"""

from core.entry import begin_program

begin_program()

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import check_ranges, load_config, run_app
from core.errors import ConfigError, ContractError
from core.logs import configure_logging
from retrieval.beir import read_collection
from retrieval.config import Output
from retrieval.metrics import measure_quality
from scripts.bench_index import PASSAGES, WORDS_PER_CHUNK
from scripts.bench_lexical_engines import BATCH, BATCHES, ENGINES

SCRIPT = Path(__file__).with_name("bench_lexical_engines.py")
FOREIGN = ("bm25s", "tantivy")
"""Engines that live in the peers' environment."""
console = Console(stderr=True)


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_lexical.py can be told.

    Attributes:
        engines: Which are compared.
        collections: Folders of labelled collections in BEIR's layout, for quality.
        judged: Most labelled questions of each collection that are asked.
        sizes: Documents of each synthetic corpus, for speed and memory.
        source: Retrieval set whose words and questions make the synthetic corpora.
        queries: Real questions that are asked of a synthetic corpus, as many as fit into 20 seconds.
        peers_python: The Python that has bm25s and tantivy (`make bench-peers`).
        output: How the figures are printed.
    """

    engines: list[str] = field(default_factory=lambda: list(ENGINES))
    collections: list[str] = field(
        default_factory=lambda: [f"../shared/data/{name}" for name in ("cranfield", "squad_dev_a", "hotpotqa_100")]
    )
    judged: int = 1000
    sizes: list[int] = field(default_factory=lambda: [100_000])
    source: str = "../shared/data/squad_dev_a"
    queries: int = 200
    peers_python: str = ".venv-peers/bin/python"
    output: Output = Output.table

    def __post_init__(self) -> None:
        """Check names and ranges."""
        unknown = sorted(set(self.engines) - set(ENGINES))
        if unknown:
            raise ConfigError(f"engines: wanted some of {', '.join(ENGINES)}, found {unknown}", param="engines")
        ranges: dict[str, tuple[float | None, float, float]] = {
            f"sizes[{place}]": (size, 1000, 10_000_000) for place, size in enumerate(self.sizes)
        }
        check_ranges(
            "bench_lexical", {**ranges, "judged": (self.judged, 1, 10_000), "queries": (self.queries, 1, 10_000)}
        )


def main(composed: DictConfig) -> None:
    """Measure every engine on every corpus."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    python = Path(config.peers_python).absolute()
    if set(config.engines) & set(FOREIGN) and not python.is_file():
        raise ConfigError(
            f"peers_python: wanted a Python with {' and '.join(FOREIGN)} at {python}, found none. Make it: "
            "make bench-peers, or leave them out: engines=[loam,fts5]",
            param="peers_python",
        )
    figures: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-lexical-") as folder:
            for collection in config.collections:
                figures.extend(judge(Path(collection), config, Path(folder)))
            for size in config.sizes:
                figures.extend(measure(size, config, Path(folder)))
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far follows")
    show(figures, config.output)


def judge(source: Path, config: BenchConfig, folder: Path) -> list[dict[str, Any]]:
    """Return each engine's nDCG@10 on a labelled collection; a passage is its title and text."""
    collection = read_collection(source)
    names = sorted(collection.judged)[: config.judged]
    judged = {name: collection.judged[name] for name in names}
    texts = [f"{passage.title}\n{passage.text}".strip() for passage in collection.passages]
    ids = [passage.id for passage in collection.passages]
    found = []
    for engine, answer in ask_engines(texts, [collection.queries[name] for name in names], len(texts), config, folder):
        rankings = {
            name: [ids[number] for number in numbers] for name, numbers in zip(names, answer["found"], strict=True)
        }
        quality = measure_quality(rankings, judged)
        found.append({"engine": engine, "corpus": source.name, "documents": len(texts), "ndcg_10": quality.ndcg_at_10})
    return found


def measure(size: int, config: BenchConfig, folder: Path) -> list[dict[str, Any]]:
    """Return each engine's speed and memory on a synthetic corpus."""
    collection = read_collection(Path(config.source))
    words = np.array(" ".join(passage.text for passage in collection.passages[:PASSAGES]).split())
    chance = np.random.default_rng(0)
    texts = (
        f"{' '.join(words[chance.integers(len(words), size=WORDS_PER_CHUNK)])} item{number}"
        for number in range(size + BATCH * BATCHES)
    )
    queries = list(collection.queries.values())[: config.queries]
    found = []
    for engine, answer in ask_engines(texts, queries, size, config, folder):
        del answer["found"]
        rounded = {name: round(value, 2) for name, value in answer.items()}
        found.append({"engine": engine, "corpus": "synthetic", "documents": size, **rounded})
    return found


def ask_engines(
    texts: Any, queries: list[str], size: int, config: BenchConfig, folder: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Run each engine over a corpus in a process of its own.

    Raises:
        ContractError: A process failed; its words are in the terminal.
    """
    corpus, questions = folder / "corpus.jsonl", folder / "queries.json"
    with corpus.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
    questions.write_text(json.dumps(queries), encoding="utf-8")
    answers = []
    for engine in config.engines:
        console.print(f"{engine}: {size} documents …")
        python = str(Path(config.peers_python).absolute()) if engine in FOREIGN else sys.executable
        command = [python, str(SCRIPT), engine, str(corpus), str(questions), str(size)]
        environment = {**os.environ, "PYTHONPATH": "" if engine in FOREIGN else str(SCRIPT.parent.parent)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
        if done.returncode:
            raise ContractError(f"{engine}: the process that measured ended with {done.returncode}; see above.")
        answers.append((engine, json.loads(done.stdout)))
    return answers


def show(figures: list[dict[str, Any]], output: Output) -> None:
    """Print the figures."""
    if output is Output.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    names = list(dict.fromkeys(name for one in figures for name in one))
    table = Table(title="Search by words")
    for name in names:
        table.add_column(name.replace("_bytes", " MiB"), justify="left" if name in {"engine", "corpus"} else "right")
    for one in figures:
        cells = [one.get(name, "") for name in names]
        table.add_row(*(format_cell(name, cell) for name, cell in zip(names, cells, strict=True)))
    Console(width=140).print(table)


def format_cell(name: str, value: Any) -> str:
    """Return a figure as the table shows it."""
    if isinstance(value, str):
        return value
    return f"{value / 2**20:.0f}" if name.endswith("_bytes") else f"{value:g}"


if __name__ == "__main__":
    run_app("bench_lexical", main)
