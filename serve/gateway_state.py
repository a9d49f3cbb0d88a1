"""What the routes share: the parts of one gateway, handed to `build_app` and found again through the request."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.types import Receive

from retrieval.config import ChunkingConfig
from serve.answering import Answering
from serve.archive import Archive
from serve.catalog import Catalog, Entry
from serve.ingestion import IngestionWorker
from serve.job_runner import JobRunner
from serve.library import Library
from serve.metrics import Metrics
from serve.model_server import Upstream
from serve.named_models import NamedModels
from serve.owners import Caller
from serve.quotas import Quotas
from serve.repeats import Repeats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one gateway.

    Attributes:
        engine: The vLLM server, or several.
        catalog: The names that are served.
        library: The stores and the embedder.
        answering: What answers as an assistant.
        archive: The gateway's own rows and files.
        worker: What makes documents of attached files.
        chunking: How they are cut where a request does not say.
        url: How clients reach the gateway; None: as the request says.
        first_byte_timeout_s: Longest wait for the first byte of a stream.
        answer_timeout_s: Longest wait for a whole answer.
        jobs: What runs the fine-tuning jobs.
        repeats: What was made for requests that may come again.
        names: What owners have named at run time.
        metrics: What is counted.
        quotas: What each key may take.
        language: What the words of new stores are stemmed as; None: english.
    """

    engine: Upstream
    catalog: Catalog
    library: Library
    answering: Answering
    archive: Archive
    worker: IngestionWorker
    chunking: ChunkingConfig
    url: str | None
    first_byte_timeout_s: float
    answer_timeout_s: float
    jobs: JobRunner
    repeats: Repeats
    names: NamedModels
    metrics: Metrics = field(default_factory=Metrics)
    quotas: Quotas = field(default_factory=Quotas)
    language: str | None = None

    def note_usage(self, caller: Caller, model: str, usage: dict[str, Any] | None, said: str = "") -> None:
        """Count the tokens of an answer, for the metrics and for its key's quota.

        Args:
            caller: Whose answer it is.
            model: The name of what answered.
            usage: OpenAI's usage object; None where it is not known.
            said: What was answered until it was broken off: counted where the usage is not known.
        """
        if usage is None and said:
            tokens = self.answering.count_tokens(said)
            usage = {"completion_tokens": tokens, "total_tokens": tokens}
        self.metrics.count_tokens(model, usage)
        if usage:
            self.quotas.spend(caller, int(usage.get("total_tokens") or 0))


async def get_gateway(request: Request) -> Gateway:
    """Return the gateway that a request came to. A coroutine, for the reason of owners.get_caller."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def read_base_url(request: Request, gateway: Gateway) -> str:
    """Return the gateway's own URL as this client reaches it."""
    return gateway.url or str(request.base_url)


def take_model(request: Request, gateway: Gateway, name: str, owner: str) -> Entry:
    """Return what answers an owner's chat under a name, and keep it from being taken away until the request has ended.

    Raises:
        ModelNotFound: Nothing has that name, or what has it does not chat.
    """
    entry = gateway.catalog.resolve_chat(name, owner)
    request.state.releases.append(gateway.jobs.models.hold(entry.target))
    return entry


CurrentGateway = Annotated[Gateway, Depends(get_gateway)]


class ClientGone(Exception):  # a condition, never shown to anybody
    """The client closed the connection before there was an answer."""


async def run_for_client(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do a request's work, and drop it as soon as the client is gone.

    Args:
        request: Its body has been read.
        work: What to do; cancelled when the client goes away, which closes its request in vLLM.

    Returns:
        What the work returned.

    Raises:
        ClientGone: The client closed the connection.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for unfinished in (task, watcher):
            unfinished.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection; the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        continue
