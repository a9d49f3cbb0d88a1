"""A TCP proxy that cuts connections when the answer has begun to come: what a client sees of a network that fails.

A cut is a reset on both sides with the answer unread, so that neither side can mistake it for an orderly end.
"""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: on, no time."""


class CuttingProxy:
    """Listens on a port of its own and forwards to another."""

    def __init__(self, port: int) -> None:
        """Forward to a port of this machine."""
        self.cuts = 0  # how many of the next requests are cut
        self.was_cut = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        """Copy bytes both ways until one side ends, or the answer to a request that is to be cut begins."""
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [], 120)
                if server in ready and self.cuts > 0 and server.recv(1, socket.MSG_PEEK):
                    self.cuts -= 1
                    self.was_cut += 1
                    for side in (client, server):
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                for source in ready:
                    piece = source.recv(65_536)
                    if not piece:
                        return
                    (client if source is server else server).sendall(piece)
                if not ready:
                    return


@contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    """Run a proxy for the time of the block."""
    proxy = CuttingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
