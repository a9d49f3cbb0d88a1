"""The gateway: one explicit constructor that puts routes, middleware and error handling together.

Keeps no state of its own at import: two gateways can live in one process. Does not start the engine, does not listen.
"""

from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from core.errors import ConfigError, LoamError
from serve.boundary import Boundary, answer_error
from serve.gateway_state import ClientGone, Gateway
from serve.routes import chat, embeddings, health, models, sources

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(slots=True)
class GatewayConfig:
    """What stands under `gateway`.

    Attributes:
        host: Address to listen on. Anything but loopback needs a key in LOAM_API_KEY.
        port: Port to listen on; 0 takes a free one.
        url: How clients reach the gateway, for the links of citations; None: http://host:port.
        max_body_mib: Largest request body in MiB.
        answer_timeout_s: Longest wait for a whole answer that is not streamed.
        stop_timeout_s: Time that running answers get when the gateway is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    url: str | None = None
    max_body_mib: int = 8
    answer_timeout_s: float = 600.0
    stop_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"gateway.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("host", bool(self.host), "an address", self.host),
                ("port", 0 <= self.port <= 65535, "0 to 65535", self.port),
                ("max_body_mib", 1 <= self.max_body_mib <= 1024, "1 to 1024", self.max_body_mib),
                ("answer_timeout_s", self.answer_timeout_s > 0, "more than 0", self.answer_timeout_s),
                ("stop_timeout_s", self.stop_timeout_s >= 0, "0 or more", self.stop_timeout_s),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults), param="gateway")


def build_app(gateway: Gateway, api_key: str | None, max_body_bytes: int) -> FastAPI:
    """Build the gateway's app.

    Args:
        gateway: Its parts, already running.
        api_key: What every request must carry; None lets anybody on this machine ask.
        max_body_bytes: Largest request body.

    Returns:
        An ASGI app with exactly the routes of docs/api.md.
    """
    app = FastAPI(title="Loam", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    for noun in (health, models, chat, embeddings, sources):
        app.include_router(noun.router)
    for kind in (LoamError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(ClientGone, answer_nobody)
    app.add_middleware(Boundary, api_key=api_key, max_body_bytes=max_body_bytes)
    return app


def answer_nobody(_request: Request, _error: Exception) -> Response:
    """Answer a client that has gone; the status is for the log only."""
    return Response(status_code=499)
