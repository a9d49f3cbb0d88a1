"""The program's own parts: work that a signal ends."""

import asyncio
import gc
import sqlite3
from pathlib import Path

import pytest

from core.config import PathsConfig
from core.errors import EngineUnavailable
from core.layout import DataDir
from serve.keys import KeyRing
from serve.preflight import ServeConfig
from serve.program import finish_unless_stopped, open_archive, settle_memory


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


def test_the_keys_are_closed_whatever_happens(tmp_path: Path) -> None:
    def use(kept: list[KeyRing]) -> None:
        with open_archive(ServeConfig(PathsConfig(str(tmp_path))), DataDir(tmp_path)) as (_, keys):
            kept.append(keys)
            raise EngineUnavailable("no")

    kept: list[KeyRing] = []
    with pytest.raises(EngineUnavailable):
        use(kept)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        _ = kept[0].has_good_key


def test_what_the_start_has_made_is_not_looked_at_again() -> None:
    kept = [[number] for number in range(10_000)]
    try:
        settle_memory()
        assert gc.get_freeze_count() >= len(kept)
        assert not {id(one) for one in gc.get_objects()} & {id(one) for one in kept}
    finally:
        gc.unfreeze()
