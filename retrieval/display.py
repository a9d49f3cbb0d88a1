"""How results look: tables and the next command for people, one JSON object a line for programs.

Programs get nothing else on standard output; progress goes to standard error. Does not know how results come about.
"""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.next_command import quote_value, write_next_command
from core.spelling import dump_line, reveal, reveal_lines
from retrieval.config import EmbedderConfig
from retrieval.documents import DocumentState
from retrieval.status import StoreStatus

if TYPE_CHECKING:  # both come with faiss, which a status does not need
    from retrieval.ingest import IngestReport
    from retrieval.ingest import Progress as OnProgress
    from retrieval.lesson import Outcome
    from retrieval.searcher import SearchResult
    from retrieval.tuning import TuningReport

EXCERPT_CHARS = 300
PLAIN_INTERVAL_S = 5.0

console = Console()


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line."""
    sys.stdout.write(dump_line(value) + "\n")


def show_hits(result: "SearchResult", *, as_json: bool) -> None:
    """Print what a search found."""
    if as_json:
        for hit in result.hits:
            print_json(hit.to_json())
        return
    searched = ", ".join(f"{store.store} ({store.chunks} chunks)" for store in result.searched)
    if not result.hits:
        console.print(f"Nothing found in {escape(searched)}.")
        return
    table = Table(show_lines=True, expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("where", ratio=1, overflow="fold")
    table.add_column("text", ratio=2, overflow="fold")
    for hit in result.hits:
        place = [hit.file, *([f"page {hit.page}"] if hit.page else []), *([hit.heading] if hit.heading else [])]
        place = list(map(reveal, place))
        text = hit.text if len(hit.text) <= EXCERPT_CHARS else hit.text[:EXCERPT_CHARS].rstrip() + " …"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", escape("\n".join(place)), escape(reveal_lines(text)))
    console.print(table)
    console.print(f"[dim]searched {escape(searched)} in {result.timings_ms['total']:.0f} ms[/dim]")


def show_status(stores: Sequence[StoreStatus], data_dir: str, *, as_json: bool) -> None:
    """Print each store's counts."""
    if as_json:
        for store in stores:
            print_json(asdict(store))
        return
    if not stores:
        console.print("There are no stores yet. Make one:")
        suggest("retrieval/run.py", "action=ingest store=NAME source=FOLDER", data_dir=data_dir)
        return
    table = Table()
    numbers = {"files", "failed", "in progress", "chunks", "generation"}
    for name in ("store", "files", "failed", "in progress", "chunks", "embedder", "language", "generation", "made"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for store in stores:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(store.created_at))
        counts = (store.files, store.failed, store.in_progress, store.chunks)
        made_with = (escape(store.embedder), store.language, str(store.generation))
        table.add_row(escape(store.store), *map(str, counts), *made_with, made)
    console.print(table)
    suggest_search(stores[0].store, data_dir, EmbedderConfig(name=stores[0].embedder))


def show_documents(documents: Mapping[str, Sequence[DocumentState]], *, as_json: bool) -> None:
    """Print each document of each store with its state, and why it failed."""
    if as_json:
        for store, states in documents.items():
            for state in states:
                print_json({"store": store, **asdict(state)})
        return
    for store, states in documents.items():
        counts = Counter(state.status for state in states)
        told = ", ".join(f"{counts[status]} {status}" for status in ("completed", "failed", "in_progress"))
        table = Table(title=f"{store}: {told}", title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("status", no_wrap=True)
        table.add_column("bytes", justify="right", no_wrap=True)
        table.add_column("chunks", justify="right", no_wrap=True)
        table.add_column("error", overflow="fold")
        for state in states:
            error = f"{state.last_error['code']}: {state.last_error['message']}" if state.last_error else ""
            numbers = (str(state.size_bytes), str(state.chunks))
            table.add_row(escape(reveal(state.file)), state.status, *numbers, escape(reveal(error)))
        console.print(table)


def show_report(report: "IngestReport", data_dir: str, embedder: EmbedderConfig, *, as_json: bool) -> None:
    """Print what an ingestion did, with every file that could not be read."""
    if as_json:
        print_json(asdict(report))
        return
    rate = report.embedded / report.seconds if report.seconds else 0.0
    counts = [f"{report.found} files found", f"{report.ingested} ingested"]
    if report.changed:
        counts[-1] += f" ({report.added} new, {report.changed} changed)"
    counts += [f"{count} {what}" for what, count in (("renamed", report.renamed), ("removed", report.removed)) if count]
    counts += [f"{report.unchanged} unchanged", f"{len(report.failures)} failed"]
    console.print(
        f"store {escape(report.store)}: {', '.join(counts)}; {report.chunks} chunks, {report.embedded} embedded, "
        f"{report.reused} reused, in {report.seconds:.1f} s ({rate:.0f} chunks/s)"
    )
    if report.failures:
        table = Table(title="Files that could not be read", title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("code", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for failure in report.failures:
            table.add_row(escape(reveal(failure.file)), failure.code, escape(reveal(failure.reason)))
        console.print(table)
    if report.ingested or report.unchanged:
        suggest_search(report.store, data_dir, embedder)


def suggest(program: str, *words: str, data_dir: str) -> None:
    """Print the command that comes next."""
    command = write_next_command(program, *words, data_dir=data_dir)
    console.print(f"next: [bold]{escape(command)}[/bold]", soft_wrap=True)


def suggest_search(store: str, data_dir: str, embedder: EmbedderConfig) -> None:
    """Print how to search a store with the embedder that made its vectors."""
    words = [f"--set {setting}" for setting in name_embedder(embedder)]
    suggest("scripts/search.py", store, '"what you want to know"', *words, data_dir=data_dir)


def name_embedder(embedder: EmbedderConfig) -> list[str]:
    """Return the settings, quoted for a shell, that have a program embed as this one does; of the usual one none."""
    usual = EmbedderConfig()
    name = [f"embedder.name={embedder.name}"] if embedder.name != usual.name else []
    prefixes = ("query_prefix", "passage_prefix")
    changed = [key for key in prefixes if getattr(embedder, key) != getattr(usual, key)]
    return name + [shlex.quote(f"embedder.{key}={quote_value(getattr(embedder, key))}") for key in changed]


def show_tuning(store: str, report: "TuningReport", data_dir: str, embedder: EmbedderConfig, *, as_json: bool) -> None:
    """Print what tuning found, and what is searched with now."""
    search = report.search
    if as_json:
        values = {**asdict(report), "store": store, "search": {**asdict(search)}}
        values["search"] = {key: getattr(value, "value", value) for key, value in values["search"].items()}
        print_json(values)
        return
    table = Table(title=f"store {store}, {report.questions} questions, nDCG@10")
    for name in ("settings", "nDCG@10", "judged on"):
        table.add_column(name, justify="right" if name == "nDCG@10" else "left")
    table.add_row("as they were", f"{report.before:.4f}", "all questions")
    table.add_row("tuned", f"{report.unseen:.4f}", "each fifth by settings chosen on the others: what to expect")
    table.add_row("tuned", f"{report.fitted:.4f}", "the questions that they were chosen on")
    console.print(table)
    console.print(
        f"Tuned settings change unseen questions by {report.unseen - report.before:+.4f} "
        f"(95% {report.low:+.4f} to {report.high:+.4f})."
    )
    if not report.is_better:
        console.print("That is no gain, so the store is searched as before.")
        return
    reranking = f", rerank_depth {search.rerank_depth}, rerank_weight {search.rerank_weight}" if search.reranker else ""
    console.print(
        f"Kept with the store: fusion {search.fusion.value}, dense_weight {search.dense_weight}, span_weight "
        f"{search.span_weight}, pair_weight {search.pair_weight}, likeness_weight {search.likeness_weight}"
        f"{reranking}, k {report.k} (recall {report.recall_at[report.k - 1]:.3f} of "
        f"{report.recall_at[-1]:.3f} with {len(report.recall_at)} hits). search.use_tuned=false ignores them."
    )
    suggest_search(store, data_dir, embedder)


def show_outcome(outcome: "Outcome", *, as_json: bool) -> None:
    """Print what training gave."""
    if as_json:
        gains = [asdict(gain) for gain in outcome.gains]
        print_json({"model": outcome.folder.name, "examples": outcome.examples, "gains": gains})
        return
    console.print(f"wrote {escape(str(outcome.folder))}, learned from {outcome.examples} questions")
    if not outcome.gains:
        return
    table = Table(title="nDCG@10 of the hybrid search", title_justify="left")
    for name in ("set", "questions", "before", "after", "difference", "95% of it"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for gain in outcome.gains:
        cells = (f"{gain.before:.4f}", f"{gain.after:.4f}", f"{gain.after - gain.before:+.4f}")
        table.add_row(escape(gain.dataset), str(gain.questions), *cells, f"{gain.low:+.4f} to {gain.high:+.4f}")
    console.print(table)


@contextmanager
def follow_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that draws a bar for each stage on a terminal and prints a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainStages()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


class _PlainStages:
    """Prints a line now and then, and one at the end of each stage."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            sys.stderr.write(f"{stage} {done}/{total}\n")


@contextmanager
def follow_progress() -> Iterator["OnProgress"]:
    """Yield a callback that draws a bar on a terminal and prints a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    columns = (TextColumn("ingesting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ingesting", total=None)

        def update(report: "IngestReport") -> None:
            bar.update(task, completed=_count_done(report), total=report.found)

        yield update


class _PlainProgress:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def __call__(self, report: "IngestReport") -> None:
        if time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            sys.stderr.write(f"ingesting {_count_done(report)}/{report.found} files, {report.chunks} chunks\n")


def _count_done(report: "IngestReport") -> int:
    return report.ingested + report.renamed + report.unchanged + len(report.failures)


@contextmanager
def follow_count(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many of how many are done: a bar on a terminal, a line now and then elsewhere."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown_at = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            nonlocal shown_at
            bar.update(task, completed=done, total=total)
            if not sys.stderr.isatty() and time.monotonic() - shown_at >= PLAIN_INTERVAL_S:
                shown_at = time.monotonic()
                sys.stderr.write(f"{what} {done}/{total}\n")

        yield update
