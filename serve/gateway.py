"""The gateway: one explicit constructor that puts routes, middleware and error handling together.

Keeps no state of its own at import: two gateways can live in one process. Does not start the engine, does not listen.
"""

import asyncio
from dataclasses import dataclass, field
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from core.errors import ConfigError, LoamError
from serve.boundary import Boundary, Bounds, answer_error
from serve.forms import FRAMING_BYTES
from serve.gateway_state import ClientGone, Gateway
from serve.keys import KeyRing
from serve.routes import (
    account,
    api_keys,
    chat,
    completions,
    console,
    description,
    documents,
    embeddings,
    feedback,
    files,
    fine_tuning,
    health,
    metrics,
    models,
    named_models,
    operations,
    passages,
    reports,
    rerank,
    responses,
    search,
    sources,
    training_checks,
    training_estimates,
    vector_store_files,
    vector_stores,
)

MAX_PREVIEWS = 2
"""Checks of training data at the same time: each is a process that loads a tokenizer."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(slots=True)
class GatewayConfig:
    """What stands under `gateway`.

    Attributes:
        host: Address to listen on. Anything but loopback needs a key (scripts/keys.py).
        port: Port to listen on; 0 takes a free one.
        url: How clients reach the gateway, for the links of citations; None: http://host:port.
        tls_cert: Certificate file (PEM, with its chain) to speak HTTPS with; None: HTTP.
        tls_key: Its private key (PEM, without a password).
        granted_adapters: Run ids of the command line's adapters that every key may use; the others are `local`'s alone.
        max_body_mib: Largest request body in MiB, files left out.
        max_file_mib: Largest file that may be uploaded, MiB.
        body_timeout_s: Longest silence within a request's body.
        answer_timeout_s: Longest wait for a whole answer that is not streamed.
        stop_timeout_s: Time that running answers get when the gateway is told to stop.
        requests_per_minute: POSTs below /v1 that each key may send; None: no limit.
        tokens_per_minute: Tokens of prompts and answers that each key may take; None: no limit.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    url: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    granted_adapters: list[str] = field(default_factory=list)
    max_body_mib: int = 8
    max_file_mib: int = 512
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 600.0
    stop_timeout_s: float = 5.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"gateway.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("host", bool(self.host), "an address", self.host),
                ("port", 0 <= self.port <= 65535, "0 to 65535", self.port),
                (
                    "tls_key",
                    (self.tls_cert is None) == (self.tls_key is None),
                    "tls_cert and tls_key together",
                    self.tls_key,
                ),
                ("max_body_mib", 1 <= self.max_body_mib <= 1024, "1 to 1024", self.max_body_mib),
                ("max_file_mib", 1 <= self.max_file_mib <= 65_536, "1 to 65536", self.max_file_mib),
                ("body_timeout_s", self.body_timeout_s > 0, "more than 0", self.body_timeout_s),
                ("answer_timeout_s", self.answer_timeout_s > 0, "more than 0", self.answer_timeout_s),
                ("stop_timeout_s", self.stop_timeout_s >= 0, "0 or more", self.stop_timeout_s),
                *(
                    (name, value is None or value >= 1, "at least 1", value)
                    for name, value in (
                        ("requests_per_minute", self.requests_per_minute),
                        ("tokens_per_minute", self.tokens_per_minute),
                    )
                ),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults), param="gateway")


def build_app(
    gateway: Gateway, keys: KeyRing, max_body_bytes: int, max_file_bytes: int, body_timeout_s: float = 30.0
) -> FastAPI:
    """Build the gateway's app.

    Args:
        gateway: Its parts, already running.
        keys: Who may ask.
        max_body_bytes: Largest request body.
        max_file_bytes: Largest file in an upload.
        body_timeout_s: Longest silence within a request's body.

    Returns:
        An ASGI app with exactly the routes of docs/api.md.
    """
    app = FastAPI(
        title="Loam",
        version=version("loam"),
        description=description.ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.gateway = gateway
    app.state.previews = asyncio.Semaphore(MAX_PREVIEWS)
    for noun in (
        health, metrics, models, chat, completions, responses, embeddings, rerank, sources, files, vector_stores,
        vector_store_files, fine_tuning,
    ):  # fmt: skip
        app.include_router(noun.router, responses=description.ANSWERS)
    for noun in (
        account,
        documents,
        search,
        passages,
        feedback,
        training_checks,
        training_estimates,
        named_models,
        reports,
        operations,
        api_keys,
        console,
        description,
    ):
        app.include_router(noun.router, responses=description.ANSWERS)
    for kind in (LoamError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_fault)
    app.add_exception_handler(ClientGone, answer_nobody)
    bounds = Bounds(max_body_bytes, max_file_bytes + FRAMING_BYTES, body_timeout_s)
    app.add_middleware(Boundary, keys=keys, bounds=bounds, gateway=gateway)
    return app


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer any error of a route. A coroutine, for the reason of owners.get_caller."""
    return answer_error(request, error)


async def answer_nobody(_request: Request, _error: Exception) -> Response:
    """Answer a client that has gone; the status is for the log only."""
    return Response(status_code=499)
