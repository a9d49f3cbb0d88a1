"""Serving in scripts/bench_gpu.py: what adapters, a single stream and the gateway cost, on the engine of serve/.

A random Llama with eight adapters of rank 16 is written to a folder, vLLM is started by serve/engine.py with the
command that serve/run.py builds, and chats of fixed length are asked at once. The same load goes to the engine's
socket and to the gateway in front. Does not know vLLM's insides; quality is not judged here.
"""

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from scripts.bench_gpu_models import RANK, make_base, write_adapters
from scripts.bench_gpu_probe import read_version
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, free_memory, time_calls
from scripts.server_process import find_free_port
from serve.engine_command import EngineConfig

ADAPTERS = 8
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
COMPARED = (
    "device", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "enforce_eager", "max_loras",
    "max_lora_rank",
)  # fmt: skip
"""Settings that the engine alone and the one behind the gateway must share."""
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant> "


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


def write_models(setting: Setting, folder: Path) -> tuple[Path, list[Path]]:
    """Write a random Llama with a tokenizer of its size, and adapters for it; return their folders."""
    base = make_base(setting)
    model = folder / "random-llama"
    base.save_pretrained(model)
    make_chat_tokenizer(base.config.vocab_size).save_pretrained(model)
    return model, write_adapters(base, folder, ADAPTERS, spread=0.02)


def make_chat_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer of so many words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<end>": 1, "word": 2, "question": 3}
    words |= {f"w{number}": number for number in range(len(words), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")  # noqa: S106
    fast.chat_template = TEMPLATE
    return fast


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
    concurrency = setting.pick(64, 4)
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        model, paths = write_models(setting, Path(folder))
        size_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        free_memory(setting.device)
        names, tokens = [path.name for path in paths], setting.pick(128, 8)
        wanted = [(models, concurrency, tokens) for models in (["base"], names[:1], names)]
        wanted += [(["base"], 1, tokens), (["base"], 1, 5 * tokens)]
        base, one, eight, short, long = await ask_engine(setting, model, paths, wanted, ignore_eos=True)
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


async def ask_engine(
    setting: Setting, model: Path, adapters: Sequence[Path], wanted: Sequence[tuple[list[str], int, int]], **extras: Any
) -> list[Load]:
    """Start vLLM as serve/ does, ask it on its own socket, and stop it.

    Args:
        setting: Where and at which size.
        model: The base model's folder; it is called `base`.
        adapters: Folders of adapters, called as they are.
        wanted: Models, requests at once and tokens of an answer, of each load.
        **extras: More fields of each request.
    """
    from serve.engine import Engine
    from serve.engine_command import build_command
    from serve.model_server import Adapter

    rounds, config = setting.pick(6, 1), make_engine_config(setting)
    engine = Engine(config, [Adapter(path.name, path) for path in adapters], setting.folder / "vllm.log")
    try:
        await engine.start(build_command(config, model, "base", None, engine.scratch), lambda _s, _line: None)
        engine.client.headers.update(engine.headers)
        every, (_, count, tokens) = ["base", *(path.name for path in adapters)], wanted[0]
        await measure_load(engine.client, every, count, 1, tokens, **extras)  # warms up
        return [
            await measure_load(engine.client, names, count, rounds, tokens, **extras) for names, count, tokens in wanted
        ]
    finally:
        await engine.stop()


def measure_bandwidth(setting: Setting) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    values = torch.ones(2**28, device=setting.device)
    target = torch.empty_like(values)
    return 2 * values.nbytes / time_calls(lambda: target.copy_(values), setting.device, 10)


def measure_gateway(setting: Setting) -> list[Figure]:
    """Ask SmolLM2 through serve/run.py, as an application does, and on the engine's socket alone."""
    if read_version("loam") is None:
        raise Unavailable("the gateway tells its own version: pip install --no-deps --no-build-isolation -e .")
    model = setting.data.model("smollm2-135m-instruct")
    for folder in (model, setting.data.model("all-minilm-l6-v2")):
        if not (folder / "model.json").is_file():
            get = f"python scripts/models.py get {folder.name}"
            raise Unavailable(f"the gateway serves models of the data directory: {get}")
    return asyncio.run(_measure_gateway(setting, model))


async def _measure_gateway(setting: Setting, model: Path) -> list[Figure]:
    concurrency = setting.pick(64, 4)
    rounds, tokens = setting.pick((6, 128), (1, 8))
    (direct,) = await ask_engine(setting, model, [], [(["base"], concurrency, tokens)])
    port = find_free_port()
    program = Path(__file__).parent.parent / "serve" / "run.py"
    command = [sys.executable, str(program), "model=smollm2_135m", "adapters=[]", f"gateway.port={port}"]
    command += [f"paths.data_dir={setting.data.root}", *list_overrides(make_engine_config(setting))]
    with (setting.folder / "gateway.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await wait_until_ready(client, process)
            await measure_load(client, [model.name], concurrency, 1, tokens)
            load = await measure_load(client, [model.name], concurrency, rounds, tokens)
    finally:
        await end_process(process)
    return [
        Figure(f"SmolLM2 through the gateway, {concurrency} at once", load.tokens_per_s, "tokens/s"),
        Figure("of what its engine alone gives", load.tokens_per_s / direct.tokens_per_s, "", "no significant loss"),
    ]


def list_overrides(config: EngineConfig) -> list[str]:
    """Return what tells serve/run.py to start the same engine."""
    values = {name: getattr(config, name) for name in COMPARED}
    return [f"engine.{name}={value}" for name, value in values.items() if value is not None]


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
