"""Serving in scripts/bench_gpu.py: what adapters, a single stream and the gateway cost, on the engine of serve/.

A random Llama with eight adapters of rank 16 is written to a folder, vLLM is started by serve/engine.py with the
command that serve/run.py builds, and chats of fixed length are asked at once. What the gateway costs is seen on one
vLLM: the same load goes to its socket and through serve/run.py in front of it (`engine.urls`). Does not know vLLM's
insides; quality is not judged here.
"""

import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch

from core.layout import DataDir
from scripts.bench_gpu_folders import EMBEDDER, write_embedder, write_llama
from scripts.bench_gpu_models import RANK
from scripts.bench_gpu_probe import read_version
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, time_calls
from scripts.server_process import find_free_port
from serve.engine_command import EngineConfig

if TYPE_CHECKING:
    from serve.engine import Engine

ADAPTERS = 8
T_95 = {2: 12.706, 8: 2.365}
"""Student's t of 95% for a mean of so many values."""
SERIAL = itertools.count()
"""Numbers of the questions that were asked."""
NEEDS = ("vllm", "httpx", "aiohttp")
SERVER_NEEDS = (
    *NEEDS,
    "fastapi",
    "uvicorn",
    "uvloop",
    "hydra",
    "omegaconf",
    "sqlalchemy",
    "faiss",
    "sentence_transformers",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of requests came to.

    Attributes:
        tokens: Of all answers together.
        seconds: From the first request to the last answer.
        requests: That were answered.
    """

    tokens: int
    seconds: float
    requests: int

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of all requests together."""
        return self.tokens / self.seconds


async def measure_load(
    client: httpx.AsyncClient,
    models: Sequence[str],
    concurrency: int,
    rounds: int,
    max_tokens: int,
    **extras: Any,
) -> Load:
    """Ask chats, so many at once, and count the answers' tokens.

    Args:
        client: Of the engine's socket or of the gateway, with its key.
        models: Asked in turn.
        concurrency: Requests at once.
        rounds: Requests of each of them, one after the other.
        max_tokens: Of an answer.
        **extras: More fields of each request.

    Raises:
        Wrong: An answer was refused, or has no tokens.
    """
    names = itertools.cycle(models)
    counted: list[int] = []

    async def ask_in_turn() -> None:
        for _ in range(rounds):
            body = {
                "model": next(names),
                # Its first words are its own, so that no answer comes of another's prefix.
                "messages": [{"role": "user", "content": write_number(next(SERIAL)) + "word " * 64}],
                "max_tokens": max_tokens,
                "temperature": 0,
                **extras,
            }
            answer = await client.post("/v1/chat/completions", json=body, timeout=300)
            if answer.status_code != httpx.codes.OK:
                raise Wrong(f"{answer.status_code}: {answer.text[:200]}")
            counted.append(int(answer.json()["usage"]["completion_tokens"]))

    began = time.perf_counter()
    await asyncio.gather(*(ask_in_turn() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    if not all(counted):
        raise Wrong("an answer had no tokens")
    return Load(sum(counted), seconds, len(counted))


def write_number(number: int) -> str:
    """Return a number as words that both the random model's tokenizer and others know."""
    return " ".join(f"w{10 + digit}" for digit in map(int, str(number))) + " "


def make_engine_config(setting: Setting) -> EngineConfig:
    """Return what the profile of this machine says, made exact for the adapters of the bench."""
    exact: Any = {"max_loras": ADAPTERS, "max_lora_rank": RANK, "start_timeout_s": 300.0}
    if setting.device.type == "cuda":
        exact |= {"dtype": "bfloat16", "max_model_len": 4096, "max_num_seqs": 64, "gpu_memory_utilization": 0.85}
        return EngineConfig(device="cuda", **exact)
    from serve.hardware import fill_engine_config

    exact |= {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_gib": 1, "enforce_eager": True}
    return fill_engine_config(EngineConfig(device="cpu", **exact))


def measure_engine(setting: Setting) -> list[Figure]:
    """Time base, one adapter and eight at concurrency 64, and one stream alone, on the engine's own socket."""
    return asyncio.run(_measure_engine(setting))


async def _measure_engine(setting: Setting) -> list[Figure]:
    concurrency, tokens = setting.pick(64, 4), setting.pick(128, 8)
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        model, paths = write_llama(setting, DataDir(Path(folder)), ADAPTERS)
        size_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        names = [path.name for path in paths]
        async with running_engine(setting, model, paths) as engine:

            async def ask(models: list[str], at_once: int, tokens: int, rounds: int) -> Load:
                return await measure_load(engine.client, models, at_once, rounds, tokens, ignore_eos=True)

            await ask([model.name, *names], concurrency, tokens, 1)  # warms up
            rounds = setting.pick(6, 1)
            base, one, eight = [
                await ask(models, concurrency, tokens, rounds) for models in ([model.name], names[:1], names)
            ]
            short, long = [await ask([model.name], 1, length, rounds) for length in (tokens, 5 * tokens)]
    alone = (long.tokens - short.tokens) / (long.seconds - short.seconds)  # without prompts and the way there
    figures = [
        Figure(f"base, {concurrency} at once", base.tokens_per_s, "tokens/s"),
        Figure("one adapter, of base", one.tokens_per_s / base.tokens_per_s, "", "0.96"),
        Figure(f"{ADAPTERS} adapters, of base", eight.tokens_per_s / base.tokens_per_s, "", "0.93"),
        Figure("one stream, decoding", alone, "tokens/s"),
    ]
    if setting.device.type == "cuda":
        share = alone * size_bytes / measure_bandwidth(setting)
        figures.append(Figure("one stream, of the memory's bandwidth", share, "", "0.80"))
    return figures


@asynccontextmanager
async def running_engine(
    setting: Setting, model: Path, adapters: Sequence[Path], config: EngineConfig | None = None
) -> "AsyncIterator[Engine]":
    """Run vLLM as serve/ does for the time of the block; its client carries the key.

    Args:
        setting: Where and at which size; its folder takes vLLM's log.
        model: The base model's folder; its name is the model's.
        adapters: Folders of adapters, called as they are.
        config: The engine's settings; None: those of the setting.
    """
    from serve.engine import Engine
    from serve.engine_command import build_command
    from serve.model_server import Adapter

    config = config or make_engine_config(setting)
    engine = Engine(config, [Adapter(path.name, path) for path in adapters], setting.folder / "vllm.log")
    try:
        await engine.start(build_command(config, model, model.name, None, engine.scratch), lambda _s, _line: None)
        engine.client.headers.update(engine.headers)
        yield engine
    finally:
        await engine.stop()


def measure_bandwidth(setting: Setting) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    values = torch.ones(2**28, device=setting.device)
    target = torch.empty_like(values)
    return 2 * values.nbytes / time_calls(lambda: target.copy_(values), setting.device, 10)


def measure_gateway(setting: Setting) -> list[Figure]:
    """Ask one vLLM on its own socket, and through serve/run.py in front of it, as an application does."""
    if read_version("loam") is None:
        raise Unavailable("the gateway tells its own version: pip install --no-deps --no-build-isolation -e .")
    return asyncio.run(_measure_gateway(setting))


async def _measure_gateway(setting: Setting) -> list[Figure]:
    concurrency = setting.pick(64, 4)
    rounds, tokens = setting.pick((8, 128), (2, 8))
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        data = DataDir(Path(folder))
        model, _ = write_llama(setting, data)
        write_embedder(setting, data)
        async with running_engine(setting, model, []) as engine:

            async def ask(client: httpx.AsyncClient) -> float:
                return (await measure_load(client, [model.name], concurrency, 1, tokens)).tokens_per_s

            async with running_gateway(setting, data, engine) as client:
                await ask(client), await ask(engine.client)  # warms up
                pairs = []
                for number in range(rounds):  # by turns, and by turns who begins: a card's clock drifts
                    first, second = (client, engine.client) if number % 2 else (engine.client, client)
                    speeds = {first: await ask(first), second: await ask(second)}
                    pairs.append((speeds[client], speeds[engine.client]))
    mean, half = find_interval([through / direct for through, direct in pairs])
    return [
        Figure(
            f"base through the gateway, {concurrency} at once",
            statistics.fmean(through for through, _ in pairs),
            "tokens/s",
        ),
        Figure("of what its engine alone gives", mean, "", "no significant loss"),
        Figure(f"half of its 95% interval, {rounds} pairs of rounds", half, ""),
    ]


def find_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of a few values and half of its 95% interval, by Student's t."""
    return statistics.fmean(values), T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5


@asynccontextmanager
async def running_gateway(setting: Setting, data: DataDir, engine: "Engine") -> AsyncIterator[httpx.AsyncClient]:
    """Run serve/run.py in front of a vLLM that runs, for the time of the block; yields what speaks to it.

    Args:
        setting: Its folder takes the gateway's log.
        data: Holds the model, the only one, and the embedder.
        engine: The vLLM that runs.
    """
    port = find_free_port()
    command = [sys.executable, str(Path(__file__).parent.parent / "serve" / "run.py"), f"gateway.port={port}"]
    command += [f"paths.data_dir={data.root}", "adapters=[]", f"embedder.name={EMBEDDER}"]
    command += [f"engine.urls=['{engine.server.address}']"]
    environment = {**os.environ, "LOAM_ENGINE_KEY": engine.server.key or ""}
    with (setting.folder / "gateway.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await wait_until_ready(client, process)
            yield client
    finally:
        await end_process(process)


async def end_process(process: asyncio.subprocess.Process, patience_s: float = 60) -> None:
    """Ask a server to end, and kill it where it does not."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except TimeoutError:
        process.kill()
        await process.wait()


async def wait_until_ready(
    client: httpx.AsyncClient, process: asyncio.subprocess.Process, patience_s: float = 300
) -> None:
    """Wait until a gateway lists its models.

    Raises:
        Wrong: Its process has ended, or it takes too long.
    """
    ends = time.monotonic() + patience_s
    while time.monotonic() < ends:
        if process.returncode is not None:
            raise Wrong(f"serve/run.py ended with {process.returncode}: see gateway.log")
        try:
            if (await client.get("/v1/models")).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.5)
    raise Wrong(f"the gateway was not ready within {patience_s:.0f} s: see gateway.log")


STEPS = (
    Step("engine", measure_engine, needs=NEEDS),
    Step("gateway", measure_gateway, needs=SERVER_NEEDS),
)
