"""How the tests run the fake vLLM: the command for serve's own engine, and a script set from outside."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve.engine import Engine
from serve.engine_command import EngineCommand, EngineConfig
from serve.model_server import Adapter

REPO = Path(__file__).resolve().parent.parent.parent
BASE = "tiny-base"


def quick_config(**changes: Any) -> EngineConfig:
    """Return an engine configuration with short pauses, and with patience for a machine that stalls."""
    quick = {
        "start_timeout_s": 60.0,
        "first_byte_timeout_s": 30.0,
        "stop_timeout_s": 3.0,
        "health_interval_s": 0.2,
        "backoff_max_s": 0.5,
        "canary_interval_s": 3600.0,
    }
    return EngineConfig(**{**quick, **changes})


def fake_command(*options: str) -> EngineCommand:
    """Return the command that starts the fake vLLM."""
    arguments = [sys.executable, "-m", "tests.fakes.vllm", "--served-model-name", BASE, *options]
    return EngineCommand(arguments, {**os.environ, "PYTHONPATH": str(REPO)})


@asynccontextmanager
async def running_engine(
    tmp_path: Path, adapters: list[Adapter] | None = None, *options: str, **changes: Any
) -> AsyncIterator[Engine]:
    """Run serve's engine on the fake vLLM for the time of the block."""
    engine = Engine(quick_config(**changes), adapters or [], tmp_path / "vllm.log")
    try:
        await engine.start(fake_command(*options), lambda _seconds, _line: None)
        yield engine
    finally:
        await engine.stop()


async def set_script(engine: Engine, **script: Any) -> None:
    """Tell the fake how to answer from now on; one that has just been killed is waited for."""
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await engine.client.post("/fake/script", json=script)
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    answer.raise_for_status()


async def read_state(engine: Engine) -> dict[str, Any]:
    """Return what the fake has seen."""
    state: dict[str, Any] = (await engine.client.get("/fake/state")).json()
    return state


def find_processes(word: str) -> list[int]:
    """Return the ids of running processes with a word in their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        is_alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if is_alive and any(word in part for part in process.info["cmdline"] or []):
            found.append(process.info["pid"])
    return found
