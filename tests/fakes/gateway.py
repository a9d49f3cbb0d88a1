"""A whole gateway in the test's process: the real app and engine supervision, a fake vLLM and a searcher in memory."""

import asyncio
import dataclasses
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import openai
import sqlalchemy
import uvicorn
import uvloop
from fastapi import FastAPI
from tokenizers import Tokenizer
from tokenizers.models import BPE

from core.errors import LoamError
from core.layout import DataDir
from core.manifest import BaseIdentity
from retrieval.config import ChunkingConfig, ParsingConfig, SearchConfig
from retrieval.searcher import Searcher
from retrieval.store import Passage
from retrieval.uploads import remove_leftovers
from serve.answering import Answering, Assistant, AssistantConfig
from serve.archive import Archive
from serve.catalog import Catalog, Entry, EntryKind
from serve.connections import make_server_config
from serve.engine import Engine
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.ingestion import IngestionWorker
from serve.job_command import GpuUse, JobsConfig
from serve.job_runner import JobRunner
from serve.keys import KeyRing
from serve.library import Library
from serve.model_server import Adapter
from serve.named_models import NamedModels
from serve.owners import LOCAL
from serve.prompting import build_disarm
from serve.quotas import Quotas
from serve.repeats import Repeats
from serve.tuned_models import TunedModels, list_model, list_tuned
from tests.fakes.base_model import write_base
from tests.fakes.engine import BASE, fake_command, quick_config, read_state, set_script
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.searcher import FakeSearcher
from tests.fakes.trainer import PROGRAM

EMBEDDER = "hash-embedder"
HOLD = "vllm.hold"
"""While a file of this name is in the data directory, the fake vLLM does not come up."""
ADAPTER = f"ft:{BASE}:local:mine:0123abcd"
ALIAS = "mine"
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""What opens and ends a turn for the base model's tokenizer."""

PATIENCE_S = 60.0
"""What is not about time may take so long on a slow machine; it costs nothing where it comes at once."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For requests to http URLs: without one, httpx reads the whole list of authorities before each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that listens.

    Attributes:
        url: Its base URL, without /v1.
        engine: Its engine, on the fake vLLM.
        searcher: What it searches.
        database: Of its data directory.
        folder: Its data directory.
        loop: The loop that it runs on.
        parts: Its parts.
        app: What answers.
        clients: Closed with it.
    """

    url: str
    engine: Engine
    searcher: FakeSearcher
    database: sqlalchemy.Engine
    folder: Path
    loop: asyncio.AbstractEventLoop
    parts: Gateway
    app: FastAPI
    clients: list[openai.OpenAI] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(2 * PATIENCE_S)

    def script(self, **script: Any) -> None:
        """Tell the fake vLLM how to answer."""
        self.run(set_script(self.engine, **script))

    def state(self) -> dict[str, Any]:
        """Return what the fake vLLM has seen."""
        return self.run(read_state(self.engine))

    def client(self, key: str = "none") -> openai.OpenAI:
        """Return the stock client; it retries nothing, so that a test sees the first answer."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)
        self.clients.append(client)
        return client

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request on a connection of its own."""
        return httpx.request(method, f"{self.url}{path}", timeout=PATIENCE_S, verify=NO_TLS, **options)

    def post(self, path: str, body: Any) -> httpx.Response:
        """Post JSON."""
        return self.request("POST", path, json=body)

    def chat(self, **body: Any) -> httpx.Response:
        """Post a chat to the base model, changed by `body`."""
        message = {"role": "user", "content": "hello there"}
        return self.post("/v1/chat/completions", {"model": BASE, "messages": [message], **body})

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Have it wait so long for an answer or its first byte, and no longer, for the time of the block."""
        patient: Gateway = self.app.state.gateway
        short = dataclasses.replace(patient, first_byte_timeout_s=seconds, answer_timeout_s=seconds)
        self.app.state.gateway = short
        try:
            yield
        finally:
            self.app.state.gateway = patient

    @contextmanager
    def without_restarts(self) -> Iterator[None]:
        """Have a vLLM that died stay away for the time of the block, however long that takes."""
        hold = self.folder / HOLD
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    @contextmanager
    def full_disk(self, statement: str) -> Iterator[None]:
        """Have SQLite answer what begins with a statement as on a full disk, for the time of the block."""

        def refuse(_connection: Any, _cursor: Any, words: str, *_more: Any) -> None:
            if words.startswith(statement):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

        sqlalchemy.event.listen(self.database, "before_cursor_execute", refuse)
        try:
            yield
        finally:
            sqlalchemy.event.remove(self.database, "before_cursor_execute", refuse)

    def wait_until_ready(self) -> None:
        """Wait until vLLM answers, also after its death was noticed or before it is."""
        self.script()  # goes to one that lives
        deadline = time.monotonic() + PATIENCE_S
        while self.request("GET", "/health").status_code != 200:
            assert time.monotonic() < deadline, "the gateway did not become ready again"
            time.sleep(0.02)

    def wait_for_metrics(self, *lines: str) -> None:
        """Wait until the metrics hold some lines: a stream is counted when its last byte has gone."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(line in (text := self.request("GET", "/metrics").text) for line in lines):
            assert time.monotonic() < deadline, text
            time.sleep(0.02)


def make_catalog(assistants: dict[str, AssistantConfig], reranker: str | None = None) -> Catalog:
    """Return a catalogue of one base model, one adapter with its alias, an embedder and some assistants."""
    catalog = Catalog()
    catalog.add(Entry(BASE, EntryKind.BASE, BASE, 1))
    catalog.add(Entry(ADAPTER, EntryKind.ADAPTER, ADAPTER, 2))
    catalog.add(Entry(ALIAS, EntryKind.ALIAS, ADAPTER, 2))
    catalog.add(Entry(EMBEDDER, EntryKind.EMBEDDER, EMBEDDER, 3))
    if reranker is not None:
        catalog.add(Entry(reranker, EntryKind.RERANKER, reranker, 3))
    for name, config in assistants.items():
        target = catalog.get(config.model, LOCAL).target
        assistant = Assistant(name, target, config)
        catalog.add(Entry(name, EntryKind.ASSISTANT, target, 4, assistant=assistant))
    return catalog


def make_gateway(
    engine: Engine,
    library: Library,
    archive: Archive,
    assistants: dict[str, AssistantConfig],
    timeouts_s: tuple[float, float],
    jobs: JobsConfig | None = None,
    reranker: str | None = None,
) -> Gateway:
    """Put a gateway's parts together; the timeouts are those of the first byte and of a whole answer."""
    catalog = make_catalog(assistants, reranker)
    served = {entry.name: entry.assistant for entry in catalog.entries.values() if entry.assistant is not None}
    tokenizer = Tokenizer(BPE())
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    disarm = build_disarm(tokenizer)
    answering = Answering(engine, library, served, lambda text: len(text.split()), timeouts_s[0], BASE, disarm)
    worker = IngestionWorker(archive.data, archive.engine, library.open_embedder, ParsingConfig())
    base = BaseIdentity.of(write_base(archive.data, BASE))
    models = TunedModels(archive, engine, catalog, base, max_rank=16)
    tuned = list_tuned(archive.engine)
    for model in tuned:
        list_model(catalog, model)
    models.restore(tuned)
    quick = JobsConfig(GpuUse.share, save_every=5, max_unfinished=10_000, stop_timeout_s=5)
    runner = JobRunner(archive, engine, models, jobs or quick, "cpu", PROGRAM)
    names = NamedModels(archive, catalog)
    names.restore()
    return Gateway(
        engine, catalog, library, answering, archive, worker, ChunkingConfig(), None, *timeouts_s, jobs=runner,
        repeats=Repeats(archive), names=names,
    )  # fmt: skip


def make_adapter(folder: Path) -> Adapter:
    """Return an adapter with a folder that the fake takes for one."""
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return Adapter(ADAPTER, folder / "adapter")


@contextmanager
def running_gateway(
    folder: Path,
    passages: Sequence[Passage] = (),
    assistants: dict[str, AssistantConfig] | None = None,
    *,
    api_key: str | None = None,
    stores: Searcher | None = None,
    trains: bool = False,
    jobs: JobsConfig | None = None,
    reranker: str | None = None,
    max_body_bytes: int = 2**20,
    max_file_bytes: int = 2**20,
    first_byte_timeout_s: float = PATIENCE_S,
    answer_timeout_s: float = PATIENCE_S,
    body_timeout_s: float = 30.0,
    quotas: Quotas | None = None,
    engine_changes: dict[str, Any] | None = None,
) -> Iterator[RunningGateway]:
    """Run a gateway on a free port for the time of the block; `stores` searches for real what the worker ingests.

    `trains` works on fine-tuning jobs, by the scripted trainer.
    """
    searcher = FakeSearcher(passages)
    listener, ready = socket.create_server(("127.0.0.1", 0)), threading.Event()
    made: list[RunningGateway] = []
    faults: list[LoamError] = []
    stop: list[asyncio.Event] = []

    async def run() -> None:
        engine = Engine(quick_config(**(engine_changes or {})), [make_adapter(folder)], folder / "vllm.log")
        library = Library(cast("Searcher", stores or searcher), EMBEDDER)
        archive = Archive(DataDir(folder), max_file_bytes)
        timeouts_s = (first_byte_timeout_s, answer_timeout_s)
        gateway = make_gateway(engine, library, archive, assistants or {}, timeouts_s, jobs, reranker)
        library.time_search = gateway.metrics.time_search
        gateway = dataclasses.replace(gateway, quotas=quotas or Quotas())
        keys = KeyRing(archive.engine, api_key)
        app = build_app(gateway, keys, max_body_bytes, max_file_bytes, body_timeout_s)
        server = uvicorn.Server(make_server_config(app, 1))
        server.capture_signals = no_signals  # type: ignore[method-assign]
        stop.append(asyncio.Event())
        try:
            await engine.start(fake_command("--hold", str(folder / HOLD)), lambda _seconds, _line: None)
            url, loop = f"http://127.0.0.1:{listener.getsockname()[1]}", asyncio.get_running_loop()
            made.append(RunningGateway(url, engine, searcher, archive.engine, folder, loop, gateway, app))
            await start_work(gateway, ingests=stores is not None, trains=trains)
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            ready.set()
            await stop[0].wait()
            server.should_exit = True
            await serving
        finally:
            await stop_work(gateway)
            await engine.stop()
            library.close()
            keys.close()
            archive.close()

    def main() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        except LoamError as error:
            faults.append(error)
        finally:
            ready.set()

    (thread := threading.Thread(target=main)).start()
    ready.wait(2 * PATIENCE_S)
    try:
        if faults:
            raise faults[0]
        yield made[0]
    finally:
        if made:
            for client in made[0].clients:
                client.close()
            made[0].loop.call_soon_threadsafe(stop[0].set)
        thread.join(2 * PATIENCE_S)
        listener.close()


async def start_work(gateway: Gateway, *, ingests: bool, trains: bool) -> None:
    """Begin with what a gateway does beside answering."""
    remove_leftovers(gateway.archive.engine, gateway.archive.data)
    gateway.jobs.models.drop_refused()
    if ingests:
        gateway.worker.start()
    if trains:
        await gateway.jobs.start()


async def stop_work(gateway: Gateway) -> None:
    """End it."""
    await gateway.jobs.stop()
    await gateway.jobs.models.close()
    gateway.worker.stop(10)


@contextmanager
def no_signals() -> Iterator[None]:
    """Leave signals to pytest; a thread could not take them anyway."""
    yield


@contextmanager
def searching_gateway(
    folder: Path,
    assistants: dict[str, AssistantConfig] | None = None,
    reranker: str | None = None,
    api_key: str | None = None,
) -> Iterator[RunningGateway]:
    """Run the gateway over the real search of a data directory, with the hash embedder."""
    searcher = Searcher(DataDir(folder), search=SearchConfig(reranker=reranker), make_embedder=HashEmbedder)
    try:
        with running_gateway(
            folder, assistants=assistants, stores=searcher, reranker=reranker, api_key=api_key
        ) as running:
            yield running
    finally:
        searcher.close()
