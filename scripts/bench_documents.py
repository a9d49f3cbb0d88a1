"""Compare what libraries read of the same documents: `python scripts/bench_documents.py documents=DIR [output=json]`.

Loam's loaders run here, the others in a process and an environment of their own (`make bench-loaders`). Text:
the share of the words found that at least two libraries agree on, and of those that no other has; addresses are none.
Tables: the share of rows whose cells come out on one line, and of values that stand beside their column's name; rows
are read by python-docx, openpyxl and BeautifulSoup. Time: the median of a file's best of some runs, imports left out.
Knows no file format.
"""

from core.entry import begin_program

begin_program()

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import load_config, run_app
from core.errors import ConfigError, ContractError, LoamError
from core.logs import configure_logging

PEERS_SCRIPT = Path(__file__).with_name("bench_documents_peers.py")
OURS = "loam"
_WORD = re.compile(r"\w+")
_ADDRESS = re.compile(r"\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*|(?:https?://|www\.)[^\s)>\]]+")

Rows: TypeAlias = list[list[str]]
"""A table; the first row names the columns."""


class Output(Enum):
    """How the figures are printed."""

    table = "table"
    json = "json"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_documents.py can be told.

    Attributes:
        documents: Folder of documents; required.
        peers_python: The Python that has the other libraries (`make bench-loaders`).
        repeats: Runs of each file; the best counts.
        output: How the figures are printed.
    """

    documents: str | None = None
    peers_python: str = ".venv-documents/bin/python"
    repeats: int = 3
    output: Output = Output.table

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.repeats < 1:
            raise ConfigError(f"repeats: wanted 1 or more, found {self.repeats}", param="repeats")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a library made of a file.

    Attributes:
        text: What it read; None where it refused.
        seconds: The best of some runs.
        error: Why it refused.
    """

    text: str | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What a library came to over the files of one kind.

    Attributes:
        files: That it tried.
        read: That it read.
        found: Of the words that two libraries agree on, the share that it has.
        alone: Of its words, the share that no other has.
        rows: Of the tables' rows, the share whose cells stand on one line; None without tables.
        named: Of the tables' values, the share that stand on a line with their column's name; None without tables.
        median_s: A file's time.
    """

    files: int
    read: int
    found: float
    alone: float
    rows: float | None
    named: float | None
    median_s: float


def main(composed: DictConfig) -> None:
    """Read every file with every library and print the scores."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    if config.documents is None or not Path(config.documents).is_dir():
        raise ConfigError(f"documents: wanted a folder, found {config.documents}", param="documents")
    python = Path(config.peers_python).absolute()
    if not python.is_file():
        wanted = f"peers_python: wanted a Python with the other libraries at {python}, found none"
        raise ConfigError(f"{wanted}. Make it: make bench-loaders", param="peers_python")
    files = sorted(path.absolute() for path in Path(config.documents).rglob("*") if path.is_file())
    peers = read_by_peers(python, files, config.repeats)
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        kinds[path.suffix.lower().lstrip(".")].append(path)
    scores, refusals = {}, []
    for kind, members in sorted(kinds.items()):
        readings = {
            path: {OURS: read_by_loam(path, config.repeats), **peers.readings.get(path, {})} for path in members
        }
        tables = {path: peers.tables.get(path, []) for path in members}
        scores[kind] = score_kind(readings, tables)
        refusals += list_refusals(readings)
    show(
        {"versions": peers.versions, "machine": describe_machine(), "scores": scores, "refusals": refusals},
        config.output,
    )


def read_by_loam(path: Path, repeats: int) -> Reading:
    """Read a file with the loaders that ingestion uses, without the child process around them."""
    from retrieval.loaders import load_document

    text, best, reason = None, float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        try:
            document = load_document(path)
        except LoamError as error:
            document, reason = None, error.message
        best = min(best, time.perf_counter() - start)
        if document is not None:
            # A heading stands once in the file and is kept beside the text, not in it.
            titles = dict.fromkeys(title for part in document.sections for title in (part.heading or "").split(" > "))
            text = "\n".join([*titles, document.text])
    return Reading(text, best, reason)


@dataclass(slots=True)
class Peers:
    """What the other libraries said: readings by file and library, the rows of each file's tables, versions."""

    readings: dict[Path, dict[str, Reading]]
    tables: dict[Path, list[Rows]]
    versions: dict[str, str]


def read_by_peers(python: Path, files: list[Path], repeats: int) -> Peers:
    """Have the other libraries read the files, in a process of their own.

    Raises:
        ContractError: It ended early.
    """
    peers = Peers({}, {}, {})
    with tempfile.TemporaryDirectory(prefix="loam-bench-documents-") as folder:
        listing = Path(folder) / "files.json"
        listing.write_text(json.dumps([str(path) for path in files]))
        command = [str(python), str(PEERS_SCRIPT), str(listing), str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": folder})
    if done.returncode != 0:
        raise ContractError(f"bench: the libraries' process ended early: {done.stderr[-2000:]}")
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if "versions" in said:
            peers.versions = said["versions"]
            continue
        path = Path(said["path"])
        peers.tables[path] = said["tables"]
        peers.readings[path] = {name: Reading(**reading) for name, reading in said["readings"].items()}
    return peers


def list_refusals(readings: Mapping[Path, Mapping[str, Reading]]) -> list[dict[str, str]]:
    """Return library, file and reason of each file that a library tried and did not read."""
    return [
        {"library": library, "file": path.name, "reason": reading.error or "no text"}
        for path, by_name in readings.items()
        for library, reading in by_name.items()
        if reading.text is None
    ]


def count_words(text: str) -> Counter[str]:
    """Count a text's words, without case and without the addresses of links, which are no words to a reader."""
    return Counter(_WORD.findall(_ADDRESS.sub(" ", text.casefold())))


def score_kind(readings: Mapping[Path, Mapping[str, Reading]], tables: Mapping[Path, list[Rows]]) -> dict[str, Score]:
    """Score each library over the files of one kind."""
    names = sorted({name for by_name in readings.values() for name in by_name}, key=lambda name: (name != OURS, name))
    return {name: _score_library(name, readings, tables) for name in names}


def _score_library(
    name: str, readings: Mapping[Path, Mapping[str, Reading]], tables: Mapping[Path, list[Rows]]
) -> Score:
    mine = {path: by_name[name] for path, by_name in readings.items() if name in by_name}
    found = agreed = alone = total = 0
    rows: list[tuple[int, int]] = []
    values: list[tuple[int, int]] = []
    for path, reading in mine.items():
        counts = {other: count_words(one.text or "") for other, one in readings[path].items()}
        wanted = agree(counts.values())
        own = counts.pop(name)
        found += sum(min(own[word], count) for word, count in wanted.items())
        agreed += sum(wanted.values())
        others = {word: max(count[word] for count in counts.values()) for word in own} if counts else dict(own)
        alone += sum(max(0, count - others[word]) for word, count in own.items())
        total += sum(own.values())
        rows += [count_whole_rows(reading.text or "", table) for table in tables[path]]
        values += [count_named_values(reading.text or "", table) for table in tables[path]]
    return Score(
        files=len(mine),
        read=sum(reading.text is not None for reading in mine.values()),
        found=found / max(agreed, 1),
        alone=alone / max(total, 1),
        rows=_share(rows),
        named=_share(values),
        median_s=statistics.median(reading.seconds for reading in mine.values()),
    )


def _share(counts: list[tuple[int, int]]) -> float | None:
    total = sum(all_ for _, all_ in counts)
    return sum(kept for kept, _ in counts) / total if total else None


def agree(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Return the words that at least two texts have: of each, as many as the second-richest text has."""
    seen: dict[str, list[int]] = defaultdict(list)
    for count in counts:
        for word, times in count.items():
            seen[word].append(times)
    return Counter({word: sorted(times)[-2] for word, times in seen.items() if len(times) > 1})


def count_whole_rows(text: str, table: Rows) -> tuple[int, int]:
    """Return how many rows of at least two filled cells stand on one line, and how many there are."""
    lines = [_squeeze(line) for line in text.split("\n")]
    wanted = [[_squeeze(cell) for cell in row if cell.strip()] for row in table]
    wanted = [row for row in wanted if len(row) > 1]
    return sum(any(all(cell in line for cell in row) for line in lines) for row in wanted), len(wanted)


def count_named_values(text: str, table: Rows) -> tuple[int, int]:
    """Return how many values below a named column stand on a line with that name, and how many there are."""
    lines = [_squeeze(line) for line in text.split("\n")]
    names, kept, total = [_squeeze(cell) for cell in table[0]] if table else [], 0, 0
    for row in table[1:]:
        for name, cell in zip(names, map(_squeeze, row), strict=False):
            if name and cell and cell != name:
                total += 1
                kept += any(name in line and cell in line for line in lines)
    return kept, total


def _squeeze(text: str) -> str:
    """Keep letters and digits, so that marks of tables and emphasis make no difference."""
    return "".join(_WORD.findall(text.casefold()))


def describe_machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}


def show(figures: dict[str, Any], output: Output) -> None:
    """Print the scores as a table for each kind, or everything as JSON."""
    if output is Output.json:
        plain = {
            kind: {name: {key: getattr(score, key) for key in Score.__slots__} for name, score in by_name.items()}
            for kind, by_name in figures["scores"].items()
        }
        sys.stdout.write(json.dumps({**figures, "scores": plain}) + "\n")
        return
    console = Console()
    for kind, by_name in figures["scores"].items():
        table = Table(title=kind, title_justify="left")
        for column in ("library", "files read", "words found", "words alone", "rows whole", "values named", "seconds"):
            table.add_column(column, justify="left" if column == "library" else "right")
        for name, score in by_name.items():
            shares = [score.found, score.alone, score.rows, score.named]
            shown = ["" if share is None else f"{share:.1%}" for share in shares]
            table.add_row(name, f"{score.read} of {score.files}", *shown, f"{score.median_s:.3f}")
        console.print(table)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for refusal in figures["refusals"]:
        reasons[refusal["library"], refusal["reason"]].append(refusal["file"])
    for (library, reason), files in reasons.items():
        console.print(f"{library} did not read {', '.join(files)}: {reason}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_app("bench_documents", main)
