"""The gateway as a program: what serve/run.py starts once it knows that no other gateway has the data directory.

Checks, puts the parts together, serves until a signal comes, and stops the gateway, its workers and vLLM, each in the
order that loses nothing. Knows every part and no route.
"""

import asyncio
import dataclasses
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from omegaconf import DictConfig
from tokenizers import Tokenizer

from core.config import load_config
from core.errors import LoamError
from core.layout import DataDir
from core.logs import configure_logging
from core.manifest import BaseIdentity
from retrieval.indexes import measure_vectors
from retrieval.searcher import Searcher
from retrieval.uploads import remove_leftovers
from serve.answering import Answering
from serve.archive import Archive
from serve.connections import make_server_config
from serve.engine import Engine, Progress
from serve.engine_command import EngineConfig, build_command
from serve.fleet import Fleet
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.hardware import fill_engine_config, share_card
from serve.ingestion import IngestionWorker
from serve.job_command import decide_gpu
from serve.job_runner import JobRunner
from serve.keys import KeyRing
from serve.library import Library
from serve.lock import lock_data_dir
from serve.metrics import Metrics
from serve.model_server import Adapter, Upstream
from serve.named_models import NamedModels
from serve.preflight import Plan, ServeConfig, fit_loras, make_plan
from serve.progress import StartProgress, say
from serve.prompting import build_disarm
from serve.quotas import Quotas
from serve.repeats import Repeats
from serve.tuned_models import TunedModel, TunedModels, list_tuned

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: this program has them from its first second."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def run(composed: DictConfig) -> None:
    """Check, start, serve, stop."""
    configure_logging("text" if sys.stderr.isatty() else "json")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # this program says itself when it listens and when it stops
    config = load_config(composed, ServeConfig)
    engine_config = fill_engine_config(config.engine)
    data = DataDir(Path(config.paths.data_dir))
    with lock_data_dir(data.root), open_archive(config, data) as (archive, keys):
        searcher = Searcher(data, config.embedder, config.search)
        try:
            tuned = list_tuned(archive.engine)
            names = {status.store for status in searcher.list_stores()}
            plan = make_plan(config, data, names, has_key=keys.has_good_key, tuned=tuned)
            print_plan(plan)
            engine_config = fit_engine(engine_config, config, data, plan, partial(measure_vectors, archive.engine))
            config.jobs = decide_gpu(config.jobs, engine_config)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve(config, engine_config, data, plan, tuned, searcher, archive, keys))
        finally:
            searcher.close()


@contextmanager
def open_archive(config: ServeConfig, data: DataDir) -> Iterator[tuple[Archive, KeyRing]]:
    """Open the gateway's database and read the keys that it holds; LOAM_API_KEY is one more."""
    archive = Archive(data, config.gateway.max_file_mib * 2**20)
    try:
        remove_leftovers(archive.engine, data)
        with closing(KeyRing(archive.engine, os.environ.get("LOAM_API_KEY") or None)) as keys:
            yield archive, keys
    finally:
        archive.close()


def fit_engine(
    engine: EngineConfig, config: ServeConfig, data: DataDir, plan: Plan, measure_vectors: Callable[[], int]
) -> EngineConfig:
    """Return the engine's settings made exact for what is served, and for its share of the card, which is printed.

    Raises:
        ConfigError: The model does not fit on the card beside what shares it.
    """
    engine = dataclasses.replace(
        engine, max_lora_rank=plan.max_lora_rank, max_loras=engine.max_loras or fit_loras(len(plan.adapters))
    )
    if engine.urls:  # their cards are not ours to divide
        return engine
    try:
        budget = share_card(engine, plan.model, data, config.embedder, config.search, measure_vectors)
    except LoamError:
        plan.listener.close()
        raise
    if budget is None:
        return engine
    say(budget.describe())
    return dataclasses.replace(engine, gpu_memory_utilization=budget.utilization)


def print_plan(plan: Plan) -> None:
    """Tell what will be served."""
    say(f"base model   {plan.model.name}")
    for adapter in plan.adapters:
        say(f"adapter      {adapter.run_id}  ({adapter.name})")
    for reason in plan.left_out:
        say(f"left out     {reason}")


async def serve(
    config: ServeConfig,
    engine_config: EngineConfig,
    data: DataDir,
    plan: Plan,
    tuned: list[TunedModel],
    searcher: Searcher,
    archive: Archive,
    keys: KeyRing,
) -> None:
    """Start the engine and the gateway, and stop both when a signal comes."""
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    engine, start_engine = make_engine(engine_config, data, plan)
    models = restore_models(plan, tuned, archive, engine)
    jobs = JobRunner(archive, engine, models, config.jobs, str(config.hardware.get("name", "auto")))
    metrics = Metrics()
    library = Library(searcher, config.embedder.name, metrics.time_search)
    worker = IngestionWorker(data, archive.engine, library.open_embedder, config.parsing, config.chunking.mode)
    try:
        progress = StartProgress()
        if not await finish_unless_stopped(start(start_engine, engine_config, library, plan, progress), stop):
            return
        models.drop_refused()
        gateway = build_gateway(config, engine, library, archive, worker, plan, jobs, metrics)
        limits = config.gateway
        app = build_app(gateway, keys, limits.max_body_mib * 2**20, archive.max_file_bytes, limits.body_timeout_s)
        host, port = plan.listener.getsockname()[:2]
        scheme = "https" if config.gateway.tls_cert else "http"
        worker.start()
        await jobs.start()
        settle_memory()
        progress.end(f"ready        {scheme}://{host}:{port}/v1  (Ctrl-C stops it)")
        say(f"console      {scheme}://{host}:{port}/console")
        await listen(app, config, plan, stop)
    finally:
        plan.listener.close()
        await jobs.stop()
        await models.close()
        await asyncio.to_thread(worker.stop, config.gateway.stop_timeout_s)
        await engine.stop()
        library.close()
        gc.unfreeze()  # what stays frozen is never freed, and nanobind (in triton) tells each piece of it at the exit
        say("stopped")


def settle_memory() -> None:
    """Take what the start has made out of the garbage collector's sight: it lives as long as the program.

    A full collection looks at every object there is. Beside an embedder these are 700,000, and nobody is answered for
    the third of a second that looking at them takes.
    """
    gc.collect()
    gc.freeze()


def restore_models(plan: Plan, tuned: list[TunedModel], archive: Archive, engine: Upstream) -> TunedModels:
    """Check what fine-tuning jobs have made, and have the engine load what fits; say what is left out."""
    models = TunedModels(
        archive,
        engine,
        plan.catalog,
        BaseIdentity.of(plan.model),
        max_rank=plan.max_lora_rank,
    )
    for reason in models.restore(tuned):
        say(f"left out     {reason}")
    return models


def restore_names(archive: Archive, plan: Plan) -> NamedModels:
    """Serve the names that owners have given; say which lead nowhere now."""
    names = NamedModels(archive, plan.catalog)
    for reason in names.restore():
        say(f"left out     {reason}")
    return names


def make_engine(
    config: EngineConfig, data: DataDir, plan: Plan
) -> tuple[Upstream, Callable[[Progress], Coroutine[Any, Any, None]]]:
    """Return what sees to the vLLM servers, and what starts it: one of our own, or those of `engine.urls`."""
    adapters = [Adapter(adapter.name, adapter.path, adapter.manifest.canary) for adapter in plan.adapters]
    if config.urls:
        fleet = Fleet(config, plan.model.name, adapters, os.environ.get("LOAM_ENGINE_KEY") or None)
        return fleet, fleet.start
    engine = Engine(config, adapters, data.root / "logs" / "vllm.log")
    command = build_command(config, plan.model, plan.model.name, plan.template_date, engine.scratch)
    return engine, partial(engine.start, command)


async def start(
    start_engine: Callable[[Progress], Coroutine[Any, Any, None]],
    config: EngineConfig,
    library: Library,
    plan: Plan,
    progress: StartProgress,
) -> None:
    """Start the engine, and meanwhile load what the assistants search, so that the first question waits for nothing."""
    stores = sorted({store for assistant in plan.assistants.values() for store in assistant.config.stores})
    if config.device == "cuda" and not config.urls:  # vLLM measures what is free while it starts: nobody may take any
        await library.warm_up(stores)
        await start_engine(progress.show)
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(start_engine(progress.show))
            group.create_task(library.warm_up(stores))
    except* LoamError as faults:
        raise faults.exceptions[0] from None


def build_gateway(
    config: ServeConfig,
    engine: Upstream,
    library: Library,
    archive: Archive,
    worker: IngestionWorker,
    plan: Plan,
    jobs: JobRunner,
    metrics: Metrics,
) -> Gateway:
    """Put the gateway's parts together."""
    tokenizer = Tokenizer.from_file(str(plan.model / "tokenizer.json"))
    answering = Answering(
        engine=engine,
        library=library,
        assistants=plan.assistants,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        first_byte_timeout_s=config.engine.first_byte_timeout_s,
        base_model=plan.model.name,
        disarm=build_disarm(tokenizer),
    )
    return Gateway(
        engine=engine,
        catalog=plan.catalog,
        library=library,
        answering=answering,
        archive=archive,
        worker=worker,
        chunking=config.chunking,
        url=config.gateway.url,
        first_byte_timeout_s=config.engine.first_byte_timeout_s,
        answer_timeout_s=config.gateway.answer_timeout_s,
        jobs=jobs,
        repeats=Repeats(archive),
        names=restore_names(archive, plan),
        metrics=metrics,
        quotas=Quotas(config.gateway.requests_per_minute, config.gateway.tokens_per_minute),
        language=config.language,
    )


async def finish_unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Do some work, unless the program is told to stop before it is done; return whether it was finished."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


async def listen(app: FastAPI, config: ServeConfig, plan: Plan, stop: asyncio.Event) -> None:
    """Answer requests until the program is told to stop, then let running answers finish for a while."""
    server = Server(
        make_server_config(
            app,
            config.gateway.stop_timeout_s,
            ssl_certfile=config.gateway.tls_cert,
            ssl_keyfile=config.gateway.tls_key,
        )
    )
    serving = asyncio.ensure_future(server.serve(sockets=[plan.listener]))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    await serving
