"""Connections: uvicorn's, with bounds on the head of a request, and what it says when the bytes are no HTTP.

Size and time of a head are bounded here, because no route sees a head that never ends; bodies are bounded in
boundary.py. Does not know the app.
"""

import asyncio
import json
import secrets
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection that closes on a head that is too large or comes too slowly."""

    _is_in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and give it some time to send a head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note in the request's state that its client was lost before the answer was read, then do as uvicorn does.

        A client that closes a connection with an answer unread in it resets it: that is the kernel's rule (RFC 2525,
        2.17). serve/repeats.py asks for the note, and to be told where the answer was read.
        """
        self._stop_head_timer()
        cycle: RequestResponseCycle | None = self.cycle  # None until the first head is whole, whatever uvicorn declares
        if cycle is not None and (exc is not None or not cycle.response_complete):
            cycle.scope["state"]["is_lost"] = True
        else:
            self._tell_that_it_was_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read the next bytes, and look how long the head has grown."""
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Begin a head; whoever asks again on a connection has read what came before."""
        self._tell_that_it_was_read()
        super().on_message_begin()
        self._is_in_head = True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow_head)

    def on_headers_complete(self) -> None:
        """End a head."""
        self._is_in_head = False
        self._head_bytes = 0
        self._stop_head_timer()
        super().on_headers_complete()

    def _tell_that_it_was_read(self) -> None:
        """Call what stands in the last request's state as `when_read`, where its answer was given to the end."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_complete:
            when_read = cycle.scope["state"].pop("when_read", None)
            if when_read is not None:
                when_read()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in OpenAI's shape."""
        self._refuse(400, msg)

    def _end_slow_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._refuse(408, f"The request's head did not come within {HEAD_TIMEOUT_S:g} s.")
        else:
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the app, and close."""
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
        body = json.dumps({"error": error}).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: req_{secrets.token_hex(16)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()


def make_server_config(app: ASGIApp, stop_timeout_s: float, **options: Any) -> uvicorn.Config:
    """Return how uvicorn is to serve the gateway: bounded connections, no websockets, no log of its own.

    Args:
        app: The gateway.
        stop_timeout_s: What running answers get when the server is told to stop.
        options: More of uvicorn's options, such as the certificate.
    """
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(stop_timeout_s),
        **options,
    )
