"""Tells what a Python process tried: loaded at its start where scripts/prove_airgap.py puts this folder on PYTHONPATH.

Appends a line to the file named by AIRGAP_AUDIT_LOG for each connection beyond this machine, each look-up of a foreign
name, and, in the gateway and the ingestion, each class that a pickle names. Refuses nothing: what happens shall be
seen.
"""

import json
import os
import socket
import sys

NAMES = ("localhost", "ip6-localhost", socket.gethostname())
PICKLE_FREE = ("serve/run.py", "retrieval/run.py")
"""Programs in which no pickle may name a class (promise A2)."""


def _is_local(host: str) -> bool:
    """Whether an address needs neither a name server nor a way out."""
    plain = host.partition("%")[0]
    if plain in ("", "0.0.0.0", "::", "::1", *NAMES):  # noqa: S104  (compared, never bound)
        return True
    return plain.startswith(("127.", "::ffff:127."))


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _describe(event: str, arguments: tuple[object, ...]) -> str | None:
    """Return what an event tried, if it is one that shall not be."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(str(address[0])):
            return f"{event} {address!r}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
        text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")
        if not _is_local(text) and not _is_number(text):
            return f"{event} {text!r}"
    elif event == "pickle.find_class" and sys.argv and sys.argv[0].endswith(PICKLE_FREE):
        return f"{event} {arguments[0]}.{arguments[1]}"
    return None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not event.startswith(("socket.", "pickle.")):
        return
    tried = _describe(event, arguments)
    if tried:
        words = getattr(sys, "argv", sys.orig_argv)[:3]
        line = json.dumps({"tried": tried, "by": " ".join(words), "process": os.getpid()})
        descriptor = os.open(os.environ["AIRGAP_AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


if os.environ.get("AIRGAP_AUDIT_LOG"):
    sys.addaudithook(_audit)
