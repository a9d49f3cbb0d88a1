"""Which of several servers a request goes to."""

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from serve.model_server import ModelServer, Overloaded, choose_least_loaded


@pytest.fixture
def servers() -> Iterator[list[ModelServer]]:
    """Three that are ready; nothing is sent to them."""
    made = [ModelServer(f"unix:/{number}.sock") for number in range(3)]
    for server in made:
        server.is_ready = True
    yield made

    async def close() -> None:
        for server in made:
            await server.close()

    asyncio.run(close())


def ask(servers: list[ModelServer], times: int, clock: Iterator[int]) -> list[int]:
    """Return which servers are chosen, one after the other, each with its answer there before the next request."""
    chosen = []
    for _ in range(times):
        server = choose_least_loaded(servers, 8)
        server.last_asked_at = float(next(clock))
        chosen.append(servers.index(server))
    return chosen


def test_of_equal_servers_the_one_that_was_asked_longest_ago_is_next(servers: list[ModelServer]) -> None:
    clock = count()
    assert ask(servers, 6, clock) == [0, 1, 2, 0, 1, 2]
    servers[0].is_ready = False
    assert ask(servers, 3, clock) == [1, 2, 1]
    servers[0].is_ready = True
    assert ask(servers, 3, clock) == [0, 2, 1]


def test_the_fewest_requests_count_before_the_time(servers: list[ModelServer]) -> None:
    for server, in_flight, asked_at in zip(servers, (2, 1, 2), (1.0, 9.0, 2.0), strict=True):
        server.in_flight, server.last_asked_at = in_flight, asked_at
    assert choose_least_loaded(servers, 8) is servers[1]
    servers[1].in_flight = 2
    assert choose_least_loaded(servers, 8) is servers[0]
    with pytest.raises(Overloaded, match="2 requests"):
        choose_least_loaded(servers, 2)
