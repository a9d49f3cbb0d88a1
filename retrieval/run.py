"""Ingest documents into a store and search it.

    python retrieval/run.py action=ingest store=NAME source=PATH
    python retrieval/run.py action=sync store=NAME source=FOLDER [verify=true] [allow_empty=true]
    python retrieval/run.py action=watch store=NAME source=FOLDER
    python retrieval/run.py action=delete store=NAME [file=DOCUMENT]
    python retrieval/run.py action=reembed store=NAME embedder.name=MODEL
    python retrieval/run.py action=search store=NAME query_file=- k=5 output=json
    python retrieval/run.py action=status [store=NAME] [files=true] [output=json]
    python retrieval/run.py action=rebuild store=NAME
    python retrieval/run.py action=tune store=NAME questions=FILE
    python retrieval/run.py action=train_reranker train='[DIR,…]' valid='[DIR,…]' output_model=NAME [base=NAME]
    python retrieval/run.py action=train_embedder train='[DIR,…]' valid='[DIR,…]' output_model=NAME [base=NAME]

Reads conf/retrieval.yaml. For a question typed by hand: python scripts/search.py NAME "free text". May run beside a
gateway on the same data directory (docs/decisions/0011).
"""

from core.entry import begin_program

begin_program()

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from core.config import load_config, run_app
from core.errors import ConfigError, InputError, describe_os_error
from core.layout import DataDir
from core.logs import configure_logging
from core.spelling import reveal
from retrieval import display
from retrieval.config import Action, EmbedderConfig, Output, RetrievalConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.status import StoreStatus, list_stores
from retrieval.stop_words import LANGUAGE
from retrieval.store import check_same_language, find_store

if TYPE_CHECKING:  # it comes with NumPy, which a status does not need
    from retrieval.filters import Filter

MAX_QUERY_BYTES = 1 << 20


def main(composed: DictConfig) -> None:
    """Do what `action` says."""
    configure_logging(level="WARNING")
    config = load_config(composed, RetrievalConfig)
    actions = {Action.ingest: run_ingest, Action.search: run_search, Action.status: run_status}
    actions |= {Action.rebuild: run_rebuild, Action.sync: run_sync, Action.watch: run_watch, Action.delete: run_delete}
    actions |= {
        Action.tune: run_tune,
        Action.train_reranker: run_train,
        Action.train_embedder: run_train,
        Action.reembed: run_reembed,
    }
    if config.action is None:
        choices = ", ".join(action.value for action in Action)
        raise ConfigError(f"action: wanted one of {choices}; found none. Give it: action=ingest", param="action")
    actions[config.action](config)


def run_ingest(config: RetrievalConfig) -> None:
    """Bring files into a store."""
    data = DataDir(Path(config.paths.data_dir))
    store_name = need(config.store, "store", "NAME")
    source = Path(need(config.source, "source", "PATH"))
    from retrieval.embedding import open_embedder
    from retrieval.ingest import Tools, ingest_files
    from retrieval.source import list_files

    files = list_files(source, data)  # a wrong path is refused before the model is looked for
    embedder = open_embedder(data, config.embedder)
    with display.follow_progress() as progress:
        tools = Tools(embedder, config.chunking, config.parsing, config.language)
        report = ingest_files(data, store_name, files, tools, progress=progress, verify=config.verify)
    display.show_report(report, config.paths.data_dir, config.embedder, as_json=config.output is Output.json)
    if not report.ingested and not report.unchanged:
        raise InputError(f"source: wanted at least one readable file in {source}, found {report.found} that are not.")


def run_sync(config: RetrievalConfig) -> None:
    """Make a store hold what a folder holds."""
    data = DataDir(Path(config.paths.data_dir))
    store_name = need(config.store, "store", "NAME")
    source = Path(need(config.source, "source", "FOLDER"))
    from retrieval.embedding import open_embedder
    from retrieval.sync import SyncRules, list_source, sync

    list_source(source, data, allow_empty=config.allow_empty)  # refused before the model is looked for
    embedder = open_embedder(data, config.embedder)
    with display.follow_progress() as progress:
        report = sync(
            data,
            store_name,
            source,
            embedder=embedder,
            chunking=config.chunking,
            parsing=config.parsing,
            progress=progress,
            rules=SyncRules(config.verify, config.allow_empty, config.language),
        )
    display.show_report(report, config.paths.data_dir, config.embedder, as_json=config.output is Output.json)


def run_watch(config: RetrievalConfig) -> None:
    """Keep a store in step with a folder until the process is told to stop."""
    data = DataDir(Path(config.paths.data_dir))
    store_name = need(config.store, "store", "NAME")
    source = Path(need(config.source, "source", "FOLDER"))
    from retrieval.embedding import open_embedder
    from retrieval.watch import stop_on_signals, watch

    embedder = open_embedder(data, config.embedder)
    with stop_on_signals() as stop:
        watch(
            data,
            store_name,
            source,
            embedder=embedder,
            config=config,
            tell=lambda report: display.show_report(
                report, config.paths.data_dir, config.embedder, as_json=config.output is Output.json
            ),
            stop=stop,
        )


def run_delete(config: RetrievalConfig) -> None:
    """Remove a document or a whole store."""
    from retrieval.sync import delete

    store_name = need(config.store, "store", "NAME")
    removed = delete(DataDir(Path(config.paths.data_dir)), store_name, config.file)
    if config.output is Output.json:
        display.print_json({"store": store_name, "file": config.file, "removed": removed})
        return
    what = f"document {reveal(config.file)}" if config.file else f"the store with its {removed} documents"
    display.console.print(f"store {store_name}: {what} removed", markup=False)
    display.suggest("retrieval/run.py", "action=status", data_dir=config.paths.data_dir)


def run_reembed(config: RetrievalConfig) -> None:
    """Give a store the vectors of another embedder."""
    from retrieval.embedding import open_embedder
    from retrieval.reembed import reembed

    store_name = need(config.store, "store", "NAME")
    data = DataDir(Path(config.paths.data_dir))
    embedder = open_embedder(data, config.embedder)
    with display.follow_count("embedding chunks") as follow:
        report = reembed(data, store_name, embedder, lambda done: follow(done.embedded, done.chunks))
    if config.output is Output.json:
        display.print_json(asdict(report))
        return
    display.console.print(
        f"store {store_name}: {report.chunks} chunks have the vectors of {report.embedder} now, "
        f"{report.embedded} embedded in {report.seconds:.1f} s",
        markup=False,
    )
    display.suggest_search(store_name, config.paths.data_dir, config.embedder)


def run_search(config: RetrievalConfig) -> None:
    """Search a store by a query from a file or standard input."""
    store_name = need(config.store, "store", "NAME")
    query = read_query(need(config.query_file, "query_file", "FILE (or query_file=- for standard input)"))
    search_and_show(config, store_name, query)


def search_and_show(config: RetrievalConfig, store_name: str, query: str) -> None:
    """Search a store and print the hits."""
    from retrieval.ranking import check_query
    from retrieval.searcher import Searcher

    check_query([store_name], query, config.k)
    filters = read_filter(config.filters) if config.filters else None
    searcher = Searcher(DataDir(Path(config.paths.data_dir)), config.embedder, config.search)
    try:
        result = searcher.search([store_name], query, config.k, filters)
    finally:
        searcher.close()
    display.show_hits(result, as_json=config.output is Output.json)
    if config.output is Output.table:
        assistant = f"+assistants.helper='{{model: MODEL, stores: [{store_name}]}}'"
        words = display.name_embedder(config.embedder)
        display.suggest("serve/run.py", assistant, *words, data_dir=config.paths.data_dir)


def run_status(config: RetrievalConfig) -> None:
    """Tell what is in the stores."""
    engine = open_database(DataDir(Path(config.paths.data_dir)).database)
    try:
        if config.store is not None:
            find_store(engine, config.store)  # raises where there is none, and lists the others
        stores: list[StoreStatus] = [store for store in list_stores(engine) if config.store in (None, store.store)]
        if config.files:
            names = [store.store for store in stores]
            documents = {name: list_documents(engine, find_store(engine, name)) for name in names}
            display.show_documents(documents, as_json=config.output is Output.json)
            return
    finally:
        engine.dispose()
    display.show_status(stores, config.paths.data_dir, as_json=config.output is Output.json)


def run_rebuild(config: RetrievalConfig) -> None:
    """Make a store's index anew from the database."""
    from retrieval.ingest import rebuild

    store_name = need(config.store, "store", "NAME")
    index = rebuild(DataDir(Path(config.paths.data_dir)), store_name)
    chunks = len(index.numbers)
    if config.output is Output.json:
        display.print_json({"store": store_name, "chunks": chunks})
        return
    display.console.print(f"store {store_name}: index of {chunks} chunks made anew from the database")
    embedder = EmbedderConfig(name=index.store.embedder.name)
    display.suggest_search(store_name, config.paths.data_dir, embedder)


def run_tune(config: RetrievalConfig) -> None:
    """Settle a store's weights, number of hits and reranking on labelled questions, and keep what helps."""
    store_name = need(config.store, "store", "NAME")
    questions = Path(need(config.questions, "questions", "FILE"))
    data = DataDir(Path(config.paths.data_dir))
    from retrieval.labels import read_labels
    from retrieval.searcher import Searcher
    from retrieval.settings import StoreSettings, save_settings
    from retrieval.tuning import check_labels, tune

    engine = open_database(data.database)
    try:
        store = find_store(engine, store_name)
        labels = read_labels(engine, store, questions)
        check_labels(labels)
        searcher = Searcher(data, config.embedder, config.search)
        try:
            texts = [question.text for question in labels.questions]
            rerank, search, feedback = None, config.search, 0.0
            if (reranker := searcher.reranker) is not None:
                search = replace(search, rerank_weight=reranker.settle_weight(search.rerank_weight))
                feedback = reranker.feedback
                rerank = lambda place, numbers: searcher.rerank(texts[place], numbers)  # noqa: E731
            with display.follow_stages() as progress:
                found = []
                for text in texts:
                    found.append(searcher.gather(store_name, text))
                    progress("searching", len(found), len(texts))
                score_pairs = lambda place, numbers: searcher.score_pairs(store_name, texts[place], numbers)  # noqa: E731
                report = tune(labels, found, search, rerank, progress, feedback=feedback, score_pairs=score_pairs)
        finally:
            searcher.close()
        if report.is_better:
            save_settings(engine, store, StoreSettings.of(report.search, report.k))
    finally:
        engine.dispose()
    as_json = config.output is Output.json
    display.show_tuning(store_name, report, config.paths.data_dir, config.embedder, as_json=as_json)


def run_train(config: RetrievalConfig) -> None:
    """Train a reranker or an embedder on question sets, and tell what it gains on others."""
    output_model = need(config.output_model, "output_model", "NAME")
    from retrieval.learning import Target
    from retrieval.lesson import Lesson, teach

    is_reranker = config.action is Action.train_reranker
    lesson = Lesson(
        target=Target.of(config.learning.kind) if is_reranker else Target.embedder,
        train=[Path(folder) for folder in config.train],
        valid=[Path(folder) for folder in config.valid],
        base=config.base or config.embedder.name,
        output_model=output_model,
        language=choose_language(config),
    )
    with display.follow_stages() as progress:
        outcome = teach(
            DataDir(Path(config.paths.data_dir)),
            lesson,
            embedder=config.embedder,
            search=config.search,
            learning=config.learning,
            progress=progress,
        )
    display.show_outcome(outcome, as_json=config.output is Output.json)
    if config.output is Output.table:
        use = f"search.reranker={output_model}" if is_reranker else f"embedder.name={output_model}"
        step = "action=search store=NAME query_file=-" if is_reranker else "action=ingest store=NAME source=FOLDER"
        display.suggest("retrieval/run.py", step, use, data_dir=config.paths.data_dir)


def choose_language(config: RetrievalConfig) -> str:
    """Return what words are stemmed as: as in the named store, else as it was told.

    Raises:
        NotFound: There is no such store.
        Conflict: The store's words are stemmed as another language than the one that was given.
    """
    if config.store is None:
        return config.language or LANGUAGE
    engine = open_database(DataDir(Path(config.paths.data_dir)).database)
    try:
        store = find_store(engine, config.store)
    finally:
        engine.dispose()
    check_same_language(store, config.language)
    return store.language


def need(value: str | None, key: str, example: str) -> str:
    """Return a value that an action cannot do without.

    Raises:
        ConfigError: It was not given.
    """
    if not value:
        raise ConfigError(f"{key}: wanted a value for this action, found none. Give it: {key}={example}", param=key)
    return value


def read_filter(path: str) -> "Filter":
    """Return the filter in a JSON file.

    Raises:
        InputError: It is not JSON, or no filter; every fault is named.
        NotFound: There is no such file.
    """
    from retrieval.filters import parse_filter

    try:
        return parse_filter(json.loads(Path(path).read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise describe_os_error(error, "read the filter") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"filters: wanted JSON in {path}, found something else ({error}).", param="filters") from error


def read_query(query_file: str) -> str:
    """Return the query's text.

    Raises:
        InputError: It is too long or not UTF-8.
        NotFound: There is no such file.
    """
    try:
        if query_file == "-":
            content = sys.stdin.buffer.read(MAX_QUERY_BYTES + 1)
        else:
            with Path(query_file).open("rb") as file:
                content = file.read(MAX_QUERY_BYTES + 1)
    except OSError as error:
        raise describe_os_error(error, "read the query") from error
    if len(content) > MAX_QUERY_BYTES:
        raise InputError(f"query_file: wanted at most {MAX_QUERY_BYTES} bytes, found more.", param="query_file")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError("query_file: wanted UTF-8 text, found other bytes.", param="query_file") from error


if __name__ == "__main__":
    run_app("retrieval", main)
