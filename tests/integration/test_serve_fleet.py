"""Several vLLM servers of others: requests go to the least loaded, one that is down is left out until it is back."""

import asyncio
import json
import socket
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from core.errors import ConfigError, EngineError, EngineUnavailable
from serve.engine_command import EngineConfig
from serve.fleet import Fleet
from serve.model_server import Adapter, EngineState, Overloaded
from serve.relay import DONE_EVENT, fetch, open_stream
from tests.fakes.engine import BASE, quick_config
from tests.fakes.fleet import RunningFleet, running_fleet

PATH = "/v1/chat/completions"
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "one two three"}]}


def encode(**changes: object) -> bytes:
    return json.dumps({**CHAT, **changes}).encode()


async def ask(running: RunningFleet, **changes: object) -> str:
    answer = json.loads(await fetch(running.fleet, PATH, encode(**changes), 60))
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """A folder that the fake takes for an adapter."""
    (tmp_path / "adapter_config.json").write_text("{}")
    return Adapter("ft:tiny-base:local:mine:0123abcd", tmp_path)


def count_chats(state: dict[str, list[dict[str, object]]]) -> int:
    return sum("messages" in request for request in state["requests"])


def test_requests_go_to_the_server_with_the_fewest(adapter: Adapter) -> None:
    async def run() -> None:
        async with running_fleet(adapters=[adapter]) as running:
            for number in range(2):
                await running.script(number, first_delay_s=0.5)
                assert list((await running.state(number))["adapters"]) == [adapter.name]
            answers = await asyncio.gather(*(ask(running, model=adapter.name) for _ in range(8)))
            assert answers == ["one two three"] * 8
            assert [count_chats(await running.state(number)) for number in range(2)] == [4, 4]
            assert [server.in_flight for server in running.fleet.servers] == [0, 0]

    asyncio.run(run())


def test_one_request_after_the_other_goes_round() -> None:
    async def run() -> None:
        async with running_fleet() as running:
            for _ in range(6):
                await ask(running)
            assert [count_chats(await running.state(number)) for number in range(2)] == [3, 3]

    asyncio.run(run())


def test_one_that_is_down_is_left_out_and_comes_back_with_its_adapters(adapter: Adapter) -> None:
    async def run() -> None:
        async with running_fleet(adapters=[adapter], health_interval_s=60.0) as running:
            running.others[0].kill()
            assert [await ask(running) for _ in range(5)] == ["one two three"] * 5  # not one is lost
            await running.wait_until(0, is_ready=False)
            assert count_chats(await running.state(1)) == 5
            running.others[0].start()
            await running.wait_until(0, is_ready=True)
            assert list((await running.state(0))["adapters"]) == [adapter.name]
            await ask(running, model=adapter.name)
            assert count_chats(await running.state(0)) == 1

    asyncio.run(run())


def test_one_that_is_taken_in_while_an_adapter_is_added_has_it(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "adapter_config.json").write_text("{}")
    more = Adapter("ft:tiny-base:local:more:0123abcd", tmp_path / "more")

    async def run() -> None:
        async with running_fleet(adapters=[adapter], health_interval_s=60.0) as running:
            server, begun, goes_on = running.fleet.servers[0], asyncio.Event(), asyncio.Event()
            load = server.load

            async def load_slowly(adapter: Adapter) -> None:
                begun.set()
                await goes_on.wait()
                await load(adapter)

            running.others[0].kill()
            server.suspect()
            await running.wait_until(0, is_ready=False)
            server.load = load_slowly  # type: ignore[method-assign]
            running.others[0].start()
            await begun.wait()
            await running.fleet.add_adapter(more)
            goes_on.set()
            await running.wait_until(0, is_ready=True)
            for number in range(2):
                assert set((await running.state(number))["adapters"]) == {adapter.name, more.name}

    asyncio.run(run())


def test_with_none_left_it_is_unavailable_and_then_works_again() -> None:
    async def run() -> None:
        async with running_fleet() as running:
            for other in running.others:
                other.kill()
            with pytest.raises(EngineUnavailable) as caught:
                await ask(running)
            assert caught.value.retry_after_s == 1
            assert running.fleet.state is EngineState.UNREACHABLE
            running.others[1].start()
            await running.wait_until(1, is_ready=True)
            assert await ask(running) == "one two three"

    asyncio.run(run())


def test_one_that_was_restarted_between_two_looks_gets_its_adapters_again(adapter: Adapter) -> None:
    async def run() -> None:
        async with running_fleet(1, adapters=[adapter]) as running:
            await running.fleet.servers[0].unload(adapter.name)  # as a restart would
            deadline = time.monotonic() + 60
            while list((await running.state(0))["adapters"]) != [adapter.name]:
                assert time.monotonic() < deadline
            await running.wait_until(0, is_ready=True)

    asyncio.run(run())


def test_one_that_hangs_is_left_out_and_its_streams_end_with_an_error() -> None:
    async def run() -> None:
        async with running_fleet(canary_interval_s=0.2, canary_timeout_s=0.6) as running:
            await running.script(0, reply="a b c d", token_delay_s=3600)
            stream = await open_stream(running.fleet, PATH, encode(stream=True), 60)
            assert running.fleet.servers[0].in_flight == 1
            await running.script(0, is_hung=True)
            async with aclosing(stream), asyncio.timeout(60):
                events = b"".join([event async for event in stream])
            assert b'"code": "engine_unavailable"' in events
            assert DONE_EVENT not in events
            assert not running.fleet.servers[0].is_ready
            assert await ask(running) == "one two three"
            await running.script(0)
            await running.wait_until(0, is_ready=True)

    asyncio.run(run())


def test_a_server_by_http_is_as_good_as_one_on_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def run() -> None:
        async with running_fleet(addresses=[f"http://127.0.0.1:{port}"]) as running:
            assert await ask(running) == "one two three"

    asyncio.run(run())


def test_an_adapter_that_comes_later_is_loaded_everywhere(adapter: Adapter, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_fleet() as running:
            await running.fleet.add_adapter(adapter)
            for number in range(2):
                assert list((await running.state(number))["adapters"]) == [adapter.name]
            with pytest.raises(EngineError, match="ft:nothing"):
                await running.fleet.add_adapter(Adapter("ft:nothing", tmp_path / "nothing"))
            await running.fleet.remove_adapter(adapter.name)
            for number in range(2):
                assert (await running.state(number))["adapters"] == {}

    asyncio.run(run())


def test_more_than_its_servers_may_be_given_is_refused() -> None:
    async def run() -> None:
        async with running_fleet(max_in_flight=2) as running:
            for number in range(2):
                await running.script(number, first_delay_s=0.5)
            asked = [asyncio.ensure_future(ask(running)) for _ in range(4)]
            await asyncio.sleep(0)  # each takes its server in its first step
            assert [server.in_flight for server in running.fleet.servers] == [2, 2]
            with pytest.raises(Overloaded) as caught:
                await ask(running)
            assert caught.value.retry_after_s == 1
            assert await asyncio.gather(*asked) == ["one two three"] * 4

    asyncio.run(run())


def test_a_start_that_finds_none_says_why_of_each() -> None:
    async def run() -> None:
        async with running_fleet(1) as running:
            urls = [running.fleet.servers[0].address, "unix:/nowhere.sock"]
            other = Fleet(quick_config(urls=urls), "another-model", [], "their-key")

            def end_once_both_are_known(_seconds: float, words: str) -> None:
                if "another-model" in words and "it is gone" in words:
                    other.config = quick_config(urls=urls, start_timeout_s=1.0)

            with pytest.raises(
                EngineUnavailable, match=r"(?s)wanted it to serve another-model.*nowhere.sock: it is gone"
            ):
                await other.start(end_once_both_are_known)

    asyncio.run(run())


@pytest.mark.parametrize("url", ["", "vllm", "unix:vllm.sock", "ftp://x", "http://", "http://x/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.urls"):
        EngineConfig(urls=[url])


def test_one_server_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        EngineConfig(urls=["unix:/a.sock", "unix:/a.sock"])
