"""The guard itself (promise A1): it refuses what leaves, lets loopback pass, and fails a test that hid a refusal."""

import contextlib
import socket
import threading

import pytest

from tests.network_guard import NetworkGuard, is_foreign_name, is_local_address

FOREIGN = ("192.0.2.1", 9)  # TEST-NET-1: belongs to nobody


def test_a_connection_beyond_loopback_is_refused(network_guard: NetworkGuard) -> None:
    with socket.socket() as connection, pytest.raises(ConnectionRefusedError, match="network guard"):
        connection.connect(FOREIGN)
    assert network_guard.take_violations() == [f"socket.connect {FOREIGN!r}"]


def test_a_datagram_and_the_own_address_trick_are_refused(network_guard: NetworkGuard) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        with pytest.raises(ConnectionRefusedError):
            connection.sendto(b"x", FOREIGN)
        with pytest.raises(ConnectionRefusedError):
            connection.connect(FOREIGN)
    assert len(network_guard.take_violations()) == 2


def test_a_foreign_name_is_not_resolved(network_guard: NetworkGuard) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.getaddrinfo("hub.example", 443)
    assert network_guard.take_violations() == ["socket.getaddrinfo 'hub.example'"]


def test_a_swallowed_refusal_in_a_thread_is_remembered(network_guard: NetworkGuard) -> None:
    def call_home() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(("telemetry.example", 443))

    thread = threading.Thread(target=call_home)
    thread.start()
    thread.join()
    assert network_guard.take_violations() == ["socket.getaddrinfo 'telemetry.example'"]


def test_loopback_passes(network_guard: NetworkGuard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port)):
            accepted, _ = server.accept()
            accepted.close()
    assert network_guard.take_violations() == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("", True), ("0.0.0.0", True), ("fe80::1%eth0", False)],
)
def test_local_addresses(host: str, expected: bool) -> None:
    assert is_local_address(host) is expected


@pytest.mark.parametrize("host", [None, b"localhost", "10.0.0.1", socket.gethostname()])
def test_names_that_need_no_name_server(host: str | bytes | None) -> None:
    assert not is_foreign_name(host)
