"""A trial: the engine alone, started as serving starts it, for programs that measure what it answers.

The same command, worker, dtype and adapter loading as behind the gateway, and no gateway. Does not know what is asked.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from core.errors import EngineError, EngineUnavailable
from core.manifest import read_chat_template
from serve.engine import Engine
from serve.engine_command import EngineConfig, build_command
from serve.model_server import Adapter
from serve.progress import StartProgress

REQUEST_TIMEOUT_S = 600.0


@asynccontextmanager
async def run_engine(
    config: EngineConfig, model: Path, adapters: list[Adapter], template_date: str, log_path: Path
) -> AsyncIterator[Engine]:
    """Run the engine with some adapters for the time of the block.

    Args:
        config: Filled up by the hardware's profile; `max_lora_rank` must hold every adapter.
        model: The base model's folder; its name is the model's name in requests.
        adapters: Loaded before the block begins.
        template_date: What the chat template prints, where it prints a date.
        log_path: Takes what vLLM prints.

    Raises:
        EngineUnavailable: vLLM did not start.
        EngineError: It refused an adapter.
    """
    date = template_date if "date_string" in read_chat_template(model) else None
    engine = Engine(config, adapters, log_path)
    progress = StartProgress()
    try:
        await engine.start(build_command(config, model, model.name, date, engine.scratch), progress.show)
        progress.end("vLLM is ready")
        yield engine
    finally:
        await engine.stop()


async def ask(engine: Engine, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post one request to the engine and return its answer.

    Args:
        engine: It runs.
        path: `/v1/chat/completions` or `/v1/completions`.
        body: The request.

    Raises:
        EngineError: The engine refused it.
        EngineUnavailable: The engine is gone.
    """
    try:
        answer = await engine.client.post(path, json=body, headers=engine.headers, timeout=REQUEST_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise EngineUnavailable(f"vLLM did not answer ({type(error).__name__}). Its log says why.") from error
    if answer.status_code != httpx.codes.OK:
        raise EngineError(f"wanted vLLM to answer for {body.get('model')}, found a refusal: {answer.text[:500]}")
    values: dict[str, Any] = answer.json()
    return values
