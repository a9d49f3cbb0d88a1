"""The engine's life: started with its adapters, watched, restarted, stopped, and never left behind."""

import asyncio
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import EngineError, EngineUnavailable
from core.manifest import Canary
from serve.engine import Engine
from serve.model_server import Adapter, EngineState
from tests.fakes.engine import (
    REPO,
    fake_command,
    find_processes,
    quick_config,
    read_state,
    running_engine,
    set_script,
)
from tests.fakes.vllm import CONTEXT_LENGTH


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """A folder that the fake takes for an adapter."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return Adapter("ft:tiny-base:local:mine:0123abcd", folder)


async def wait_until(engine: Engine, state: EngineState, patience_s: float = 50.0) -> None:
    """Wait until the engine is in a state."""
    start = time.monotonic()
    while engine.state is not state:
        if time.monotonic() - start > patience_s:
            pytest.fail(f"wanted the engine {state.value} within {patience_s} s, found {engine.state.value}")
        await asyncio.sleep(0.01)


def test_it_is_ready_with_its_adapters_and_leaves_nothing_behind(tmp_path: Path, adapter: Adapter) -> None:
    async def run() -> Path:
        async with running_engine(tmp_path, [adapter]) as engine:
            engine.check_ready()
            assert (await read_state(engine))["adapters"] == {adapter.name: str(adapter.path)}
            assert engine.max_model_len == CONTEXT_LENGTH
            assert engine.scratch.stat().st_mode & 0o777 == 0o700
            assert len(str(engine.socket)) < 100
            unkeyed = await engine.client.get("/v1/models")
            assert unkeyed.status_code == 401
            assert find_processes(str(engine.socket))
        with pytest.raises(EngineUnavailable, match="stopped"):
            engine.check_ready()
        return engine.socket

    socket = asyncio.run(run())
    assert find_processes(str(socket)) == []
    assert not socket.parent.exists()


def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, [], "--fail"):
            pass

    with pytest.raises(EngineUnavailable, match=r"(?s)ended with code 1.*no such model: scripted to fail"):
        asyncio.run(run())
    assert find_processes(str(tmp_path)) == []


def test_one_that_takes_too_long_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, [], "--start-delay=60", start_timeout_s=1.0):
            pass

    with pytest.raises(EngineUnavailable, match="start_timeout_s"):
        asyncio.run(run())


def test_an_adapter_that_it_refuses_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, [Adapter("ft:x", tmp_path / "nothing")]):
            pass

    with pytest.raises(EngineError, match="ft:x"):
        asyncio.run(run())


@pytest.mark.parametrize(("shift", "message"), [(1, None), (2, "otherwise"), (0, "answers as the base")])
def test_an_adapter_is_asked_its_canary(
    tmp_path: Path, adapter: Adapter, shift: int, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    canary = Canary([5, 6, 7], tokens=[6, 7], base_tokens=[5, 6], text="new", base_text="old", margin=1.0)
    asked = dataclasses.replace(adapter, canary=canary)

    async def run() -> None:
        async with running_engine(tmp_path, [asked], f"--adapter-shift={shift}") as engine:
            _, request = (await read_state(engine))["requests"]  # the first is the engine's own
            assert (request["model"], request["prompt"], request["max_tokens"]) == (adapter.name, [5, 6, 7], 2)

    if shift == 0:
        with pytest.raises(EngineError, match=message):
            asyncio.run(run())
        return
    asyncio.run(run())
    warnings = [record.message for record in caplog.records if "otherwise" in record.message]
    assert bool(warnings) == (message == "otherwise")


def test_kill_9_brings_it_back_with_its_adapters(tmp_path: Path, adapter: Adapter) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, [adapter], health_interval_s=60.0) as engine:  # its end alone tells
            for _ in range(3):
                before = await read_state(engine)
                old_key = engine.headers["authorization"]
                os.kill(before["pid"], signal.SIGKILL)
                await wait_until(engine, EngineState.RESTARTING)
                with pytest.raises(EngineUnavailable) as caught:
                    engine.check_ready()
                assert caught.value.retry_after_s is not None
                assert caught.value.retry_after_s >= 1
                await wait_until(engine, EngineState.READY)
                after = await read_state(engine)
                assert after["pid"] != before["pid"]
                assert after["adapters"] == {adapter.name: str(adapter.path)}
                assert engine.headers["authorization"] != old_key
            assert engine.restarts == 3

    asyncio.run(run())


def test_one_whose_log_was_taken_away_comes_back_all_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path) as engine:
            before = await read_state(engine)
            (tmp_path / "vllm.log").unlink()
            for pid in find_processes(str(engine.socket)):
                os.kill(pid, signal.SIGKILL)
            await wait_until(engine, EngineState.RESTARTING)
            await wait_until(engine, EngineState.READY)
            assert (await read_state(engine))["pid"] != before["pid"]

    asyncio.run(run())


@pytest.mark.parametrize("script", [{"is_sick": True}, {"is_deaf": True}])
def test_one_that_is_alive_but_answers_no_health_is_replaced(
    tmp_path: Path, script: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.model_server.HEALTH_TIMEOUT_S", 0.3)

    async def run() -> None:
        async with running_engine(tmp_path) as engine:
            before = await read_state(engine)
            await set_script(engine, **script)
            await wait_until(engine, EngineState.RESTARTING)
            await wait_until(engine, EngineState.READY)
            assert (await read_state(engine))["pid"] != before["pid"]

    asyncio.run(run())


def test_a_failed_request_has_its_health_looked_at_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, health_interval_s=60.0) as engine:
            engine.suspect()  # of nothing: it stays
            await asyncio.sleep(0.3)
            assert engine.state is EngineState.READY
            await set_script(engine, is_sick=True)
            engine.suspect()
            await wait_until(engine, EngineState.RESTARTING)
            await wait_until(engine, EngineState.READY)

    asyncio.run(run())


def test_one_that_dies_again_and_again_is_tried_ever_more_slowly(tmp_path: Path, adapter: Adapter) -> None:
    async def run() -> None:
        async with running_engine(tmp_path, [adapter], backoff_max_s=60.0) as engine:
            (adapter.path / "adapter_config.json").unlink()  # from now on no start succeeds
            os.kill((await read_state(engine))["pid"], signal.SIGKILL)
            looks, begun = [time.monotonic()], list[tuple[float, float]]()
            while len(begun) < 4:
                looks.append(time.monotonic())
                assert looks[-1] - looks[0] < 110
                if engine.restarts > len(begun):
                    begun.append((looks[-2], looks[-1]))  # between these two
                await asyncio.sleep(0.01)
            assert engine.state is EngineState.RESTARTING
            longest_s = [later[1] - earlier[0] for earlier, later in itertools.pairwise(begun)]
            assert longest_s[1] >= 1
            assert longest_s[2] >= 2

    asyncio.run(run())


ORPHAN = """
import asyncio, sys
from pathlib import Path
from tests.fakes.engine import running_engine, read_state

async def main():
    async with running_engine(Path(sys.argv[1])) as engine:
        print((await read_state(engine))["pid"], engine.socket, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_kill_9_of_the_gateway_takes_it_along(tmp_path: Path) -> None:
    gateway = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert gateway.stdout is not None
    _pid, socket = gateway.stdout.readline().split()
    assert find_processes(socket)
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    deadline = time.monotonic() + 60
    while find_processes(socket) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert find_processes(socket) == []
    assert not Path(socket).parent.exists()


def test_the_progress_tells_seconds_and_the_last_line(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    hold = tmp_path / "hold"
    hold.touch()

    def tell(seconds: float, line: str) -> None:
        told.append((seconds, line))
        if len(told) == 3:
            hold.unlink()  # only now it comes up

    async def run() -> None:
        engine = Engine(quick_config(), [], tmp_path / "vllm.log")
        try:
            await engine.start(fake_command("--hold", str(hold)), tell)
        finally:
            await engine.stop()

    asyncio.run(run())
    assert [seconds for seconds, _ in told] == sorted(seconds for seconds, _ in told)
    assert json.dumps(told)
    assert len(told) >= 3
