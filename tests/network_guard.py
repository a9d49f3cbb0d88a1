"""Keeps tests on this machine: no connection beyond loopback, no look-up of a foreign name (promise A1).

Python's audit events see every use of the socket module in this process, from any thread and any library. A violation
is refused before a packet leaves, and remembered, so that code which swallows the refusal fails its test all the same.
Does not see child processes or libraries with sockets of their own in C.
"""

import ipaddress
import socket
import sys
from typing import Any


class NetworkGuard:
    """Refuses and remembers what would leave the machine while `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.violations: list[str] = []

    def install(self) -> None:
        """Listen to this process for good: an audit hook cannot be taken out again."""
        sys.addaudithook(self._audit)

    def take_violations(self) -> list[str]:
        """Return what was refused since the last call, and forget it."""
        found, self.violations = self.violations, []
        return found

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or not event.startswith("socket."):
            return
        if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
            address = arguments[1]
            is_foreign = isinstance(address, tuple) and not is_local_address(address[0])
        elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
            address = arguments[0]
            is_foreign = is_foreign_name(address)
        elif event == "socket.gethostbyaddr":
            address = arguments[0]
            is_foreign = not is_local_address(address)
        else:
            return
        if is_foreign:
            self.violations.append(f"{event} {address!r}")
            raise ConnectionRefusedError(f"network guard: {event} {address!r} would leave this machine")


def is_local_address(host: str) -> bool:
    """Tell whether an address is on this machine (the unspecified address reaches only it)."""
    if host == "localhost" or not host:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def is_foreign_name(host: str | bytes | None) -> bool:
    """Tell whether resolving a host would ask a name server: anything but numbers and this machine's own names."""
    name = host.decode() if isinstance(host, bytes) else host
    if not name or name in {"localhost", socket.gethostname()}:
        return False
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return True
    return False
