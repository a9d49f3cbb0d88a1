"""The program's own parts: work that a signal ends, and progress for people and for logs."""

import asyncio

import pytest

from core.errors import EngineUnavailable
from serve.run import Progress, finish_unless_stopped


def test_work_is_finished_or_stopped_and_its_faults_are_seen() -> None:
    async def run() -> None:
        stop = asyncio.Event()
        assert await finish_unless_stopped(asyncio.sleep(0), stop)
        with pytest.raises(EngineUnavailable):
            await finish_unless_stopped(fail(), stop)
        asyncio.get_running_loop().call_later(0.02, stop.set)
        ended: list[str] = []
        assert not await finish_unless_stopped(linger(ended), stop)
        assert ended == ["cancelled"]

    asyncio.run(run())


async def fail() -> None:
    raise EngineUnavailable("no")


async def linger(ended: list[str]) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        ended.append("cancelled")


def test_progress_in_a_log_is_a_plain_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for tenth in range(120):
        progress.show(tenth / 10, "loading " + "x" * 200)
    progress.end("ready")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s ")[0] for line in lines[:-1]] == ["starting     vLLM, 5", "starting     vLLM, 10"]
    assert lines[-1] == "ready"
    assert all("\x1b" not in line and len(line) < 140 for line in lines)
