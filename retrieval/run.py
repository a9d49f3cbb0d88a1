"""Ingest documents into a store and search it.

    python retrieval/run.py action=ingest store=NAME source=PATH
    python retrieval/run.py action=search store=NAME query_file=- k=5 output=json
    python retrieval/run.py action=status [store=NAME] [output=json]
    python retrieval/run.py action=rebuild store=NAME

Reads conf/retrieval.yaml. For a question typed by hand: python scripts/search.py NAME "free text". May run beside a
gateway on the same data directory (docs/decisions/0011).
"""

import sys
from pathlib import Path

from core.offline import switch_offline

switch_offline()

from omegaconf import DictConfig

from core.config import load_config, run_app
from core.errors import ConfigError, InputError, describe_os_error
from core.layout import DataDir
from core.logs import configure_logging
from retrieval import display
from retrieval.config import Action, Output, RetrievalConfig
from retrieval.database import open_database
from retrieval.store import StoreStatus, find_store, list_stores

MAX_QUERY_BYTES = 1 << 20


def main(composed: DictConfig) -> None:
    """Do what `action` says."""
    configure_logging(level="WARNING")
    config = load_config(composed, RetrievalConfig)
    actions = {Action.ingest: run_ingest, Action.search: run_search, Action.status: run_status}
    actions |= {Action.rebuild: run_rebuild}
    if config.action is None:
        choices = ", ".join(action.value for action in Action)
        raise ConfigError(f"action: wanted one of {choices}; found none. Give it: action=ingest", param="action")
    actions[config.action](config)


def run_ingest(config: RetrievalConfig) -> None:
    """Bring files into a store."""
    data = DataDir(Path(config.paths.data_dir))
    store_name = need(config.store, "store", "NAME")
    source = Path(need(config.source, "source", "PATH"))
    from retrieval.embedding import SentenceEmbedder
    from retrieval.ingest import ingest, list_files

    list_files(source, data)  # a wrong path is refused before the model is looked for
    embedder = SentenceEmbedder(data.model(config.embedder.name), config.embedder)
    with display.follow_progress() as progress:
        report = ingest(
            data,
            store_name,
            source,
            embedder=embedder,
            chunking=config.chunking,
            parsing=config.parsing,
            progress=progress,
        )
    display.show_report(report, as_json=config.output is Output.json)
    if not report.ingested and not report.unchanged:
        raise InputError(f"source: wanted at least one readable file in {source}, found {report.found} that are not.")


def run_search(config: RetrievalConfig) -> None:
    """Search a store by a query from a file or standard input."""
    store_name = need(config.store, "store", "NAME")
    query = read_query(need(config.query_file, "query_file", "FILE (or query_file=- for standard input)"))
    search_and_show(config, store_name, query)


def search_and_show(config: RetrievalConfig, store_name: str, query: str) -> None:
    """Search a store and print the hits."""
    from retrieval.searcher import Searcher, check_query

    check_query([store_name], query, config.k)
    searcher = Searcher(DataDir(Path(config.paths.data_dir)), config.embedder, config.search)
    try:
        result = searcher.search([store_name], query, config.k)
    finally:
        searcher.close()
    display.show_hits(result, as_json=config.output is Output.json)
    if config.output is Output.table:
        display.suggest(f"python serve/run.py +assistants.helper='{{model: MODEL, stores: [{store_name}]}}'")


def run_status(config: RetrievalConfig) -> None:
    """Tell what is in the stores."""
    engine = open_database(DataDir(Path(config.paths.data_dir)).database)
    try:
        if config.store is not None:
            find_store(engine, config.store)  # raises where there is none, and lists the others
        stores: list[StoreStatus] = [store for store in list_stores(engine) if config.store in (None, store.store)]
    finally:
        engine.dispose()
    display.show_status(stores, as_json=config.output is Output.json)


def run_rebuild(config: RetrievalConfig) -> None:
    """Make a store's index anew from the database."""
    from retrieval.ingest import rebuild

    store_name = need(config.store, "store", "NAME")
    chunks = rebuild(DataDir(Path(config.paths.data_dir)), store_name)
    if config.output is Output.json:
        display.print_json({"store": store_name, "chunks": chunks})
        return
    display.console.print(f"store {store_name}: index of {chunks} chunks made anew from the database")
    display.suggest(f'python scripts/search.py {store_name} "what you want to know"')


def need(value: str | None, key: str, example: str) -> str:
    """Return a value that an action cannot do without.

    Raises:
        ConfigError: It was not given.
    """
    if not value:
        raise ConfigError(f"{key}: wanted a value for this action, found none. Give it: {key}={example}", param=key)
    return value


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
