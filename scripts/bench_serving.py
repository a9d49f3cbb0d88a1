"""Measure what adapters and the gateway cost on the real vLLM: `python scripts/bench_serving.py [output=json]`.

vLLM is started once, as serve/run.py starts it, with random adapters of rank 16 on all linear layers. Arms take turns
on it, forwards and backwards: the base model asked directly, the same through `serve/run.py engine.urls=[…]`, one
adapter, and all adapters mixed. That the gateway answers what the engine answers is proven first. Tokens of answers are
counted; ratios are medians over rounds with a bootstrapped 95% interval. Does not know how an answer is relayed.
"""

from core.entry import begin_program

begin_program()

import asyncio
import dataclasses
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, check_ranges, load_config, run_app
from core.errors import ContractError, ModelNotFound
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.config import Output
from scripts.bench_gateway import ModelChoice, running, wait_for
from scripts.bench_gpu_models import RANK, write_adapters
from scripts.bench_train import bootstrap
from scripts.server_process import find_free_port
from serve.engine import Engine
from serve.engine_command import EngineConfig, build_command
from serve.hardware import fill_engine_config
from serve.model_server import Adapter

REPO = Path(__file__).resolve().parent.parent
DIRECT, GATEWAY, ONE, ALL = "base", "base through the gateway", "one adapter", "all adapters"
KEY_VARIABLE = "LOAM_ENGINE_KEY"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_serving.py can be told.

    Attributes:
        adapters: How many are loaded.
        concurrency: Chats at the same time.
        rounds: Of turns that are counted; one more warms up.
        max_tokens: Of an answer.
        output: How the figures are printed.
        model: The base model, a folder under `models/`.
        paths: Where it is.
    """

    adapters: int = 8
    concurrency: int = 8
    rounds: int = 5
    max_tokens: int = 96
    output: Output = Output.table
    model: ModelChoice = field(default_factory=ModelChoice)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "bench_serving",
            {
                "adapters": (self.adapters, 1, 64),
                "concurrency": (self.concurrency, 1, 512),
                "rounds": (self.rounds, 2, 100),
                "max_tokens": (self.max_tokens, 1, 1024),
            },
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to ask.

    Attributes:
        name: How the table calls it.
        client: Of the engine's socket, or of the gateway.
        models: Asked in turn.
    """

    name: str
    client: httpx.AsyncClient
    models: Sequence[str]


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table.

    Attributes:
        arm: Which way.
        tokens_per_s: Of answers, median over the turns.
        of_base: Its tokens/s over the base's in the same round, median.
        low: Lower end of the 95% interval of that.
        high: Upper end.
    """

    arm: str
    tokens_per_s: float
    of_base: float
    low: float
    high: float


def main(composed: DictConfig) -> None:
    """Run the bench and print what it found."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    model = DataDir(Path(config.paths.data_dir)).model(config.model.name)
    if not (model / "config.json").is_file():
        raise ModelNotFound(f"wanted {model}, found nothing: python scripts/models.py get {config.model.name}")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        speeds = asyncio.run(measure(config, model, Path(folder)))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {load_before:.2f} before"
    if torch.cuda.is_available():
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    figures = judge(speeds)
    if config.output is Output.json:
        lines = [dataclasses.asdict(line) for line in figures]
        sys.stdout.write(json.dumps({"machine": machine, "figures": lines}) + "\n")
    else:
        print_table(figures, f"{config.model.name}, {config.concurrency} chats at once ({machine})")


def make_adapters(model: Path, folder: Path, count: int) -> list[Adapter]:
    """Write adapters with random weights for a base model."""
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    base.requires_grad_(False)
    return [Adapter(path.name, path) for path in write_adapters(base, folder, count, spread=0.01)]


async def measure(config: BenchConfig, model: Path, folder: Path) -> dict[str, list[list[float]]]:
    """Return tokens a second of each turn, by arm and round."""
    adapters = make_adapters(model, folder, config.adapters)
    settings = dataclasses.replace(fill_engine_config(EngineConfig()), max_loras=config.adapters, max_lora_rank=RANK)
    engine = Engine(settings, adapters, folder / "vllm.log")
    with ExitStack() as stack:
        try:
            note("starting vLLM")
            command = build_command(settings, model, config.model.name, None, engine.scratch)
            await engine.start(command, lambda _seconds, _line: None)
            engine.client.headers.update(engine.headers)
            note("starting the gateway")
            url = await asyncio.to_thread(start_gateway, config, engine, folder, stack)
            async with httpx.AsyncClient(base_url=url, timeout=300) as gateway:
                names = [adapter.name for adapter in adapters]
                arms = [
                    Arm(DIRECT, engine.client, [config.model.name]),
                    Arm(GATEWAY, gateway, [config.model.name]),
                    Arm(ONE, engine.client, names[:1]),
                    Arm(ALL, engine.client, names),
                ]
                await prove_equal(arms, config)
                return await take_turns(arms, config)
        finally:
            await engine.stop()


def start_gateway(config: BenchConfig, engine: Engine, folder: Path, stack: ExitStack) -> str:
    """Start serve/run.py before the engine, and return its URL."""
    data = DataDir(folder / "data")
    data.root.mkdir()
    data.models.symlink_to(DataDir(Path(config.paths.data_dir)).models.resolve())
    port = find_free_port()
    command = [sys.executable, str(REPO / "serve" / "run.py"), f"+model.name={config.model.name}", "adapters=[]"]
    command += [f"engine.urls=['unix:{engine.socket}']", f"gateway.port={port}", f"paths.data_dir={data.root}"]
    log = folder / "gateway.log"
    process = stack.enter_context(running(command, log, env={**os.environ, KEY_VARIABLE: engine.server.key or ""}))
    url = f"http://127.0.0.1:{port}"
    wait_for(f"{url}/health", process, log)
    return url


async def ask(arm: Arm, model: str, place: int, max_tokens: int) -> dict[str, Any]:
    """Ask one chat and return the answer.

    Raises:
        ContractError: It was refused, or has no tokens.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell a long story of {place + 2} friends who go to sea."}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    answer = await arm.client.post("/v1/chat/completions", json=body, timeout=300)
    if answer.status_code != httpx.codes.OK:
        raise ContractError(f"{arm.name}: wanted 200, found {answer.status_code}: {answer.text[:300]}")
    content: dict[str, Any] = answer.json()
    if not content["usage"]["completion_tokens"]:
        raise ContractError(f"{arm.name}: wanted an answer with tokens, found none")
    return content


async def prove_equal(arms: Sequence[Arm], config: BenchConfig) -> None:
    """Check that the gateway answers what the engine does, and that adapters answer otherwise.

    Raises:
        ContractError: They do not.
    """
    texts = []
    for arm in arms:
        answer = await ask(arm, arm.models[0], 0, config.max_tokens)
        texts.append(answer["choices"][0]["message"]["content"])
    if texts[0] != texts[1]:
        raise ContractError("wanted the gateway to answer what the engine answers, found another text")
    if texts[0] == texts[2]:
        raise ContractError("wanted an adapter to change the answer, found the base's")


async def take_turns(arms: Sequence[Arm], config: BenchConfig) -> dict[str, list[list[float]]]:
    """Let the arms take turns, forwards and backwards in each round."""
    speeds: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    for number in range(config.rounds + 1):
        found: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for arm in [*arms, *reversed(arms)]:
            found[arm.name].append(await take_turn(arm, config))
        if number:
            for name, values in found.items():
                speeds[name].append(values)
            note(f"round {number} of {config.rounds}: " + ", ".join(f"{n} {sum(v) / 2:.0f}" for n, v in found.items()))
    return speeds


async def take_turn(arm: Arm, config: BenchConfig) -> float:
    """Ask as many chats at once as are configured, and return the answers' tokens a second."""
    names = itertools.cycle(arm.models)
    began = time.perf_counter()
    asked = (ask(arm, next(names), place, config.max_tokens) for place in range(config.concurrency))
    answers = await asyncio.gather(*asked)
    seconds = time.perf_counter() - began
    return float(sum(answer["usage"]["completion_tokens"] for answer in answers)) / seconds


def judge(speeds: dict[str, list[list[float]]]) -> list[Figures]:
    """Return the table's lines.

    Args:
        speeds: Tokens a second, by arm; one list a round with the turn forwards and the turn backwards.
    """
    base = [sum(turns) for turns in speeds[DIRECT]]
    lines = []
    for name, rounds in speeds.items():
        of_base = bootstrap([sum(turns) / whole for turns, whole in zip(rounds, base, strict=True)])
        middle = statistics.median(itertools.chain.from_iterable(rounds))
        lines.append(Figures(name, round(middle, 1), *of_base))
    return lines


def print_table(figures: Sequence[Figures], title: str) -> None:
    """Print the figures for people."""
    table = Table("arm", "tokens/s", "of base", "95% interval", title=title)
    for line in figures:
        table.add_row(line.arm, f"{line.tokens_per_s:.0f}", f"{line.of_base:.3f}", f"{line.low:.3f} to {line.high:.3f}")
    Console().print(table)


def note(words: str) -> None:
    """Say how far the bench is."""
    sys.stderr.write(words + "\n")


if __name__ == "__main__":
    run_app("bench_serving", main)
