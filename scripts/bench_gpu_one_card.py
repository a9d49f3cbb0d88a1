"""One card for all in scripts/bench_gpu.py: vLLM, an ingestion and a 4-bit training job at the same time, as on 24 GB.

A larger card is made smaller: vLLM is told what the budget of serve/card_budget.py leaves it of 24 GB, as a share of
the card that is there; what computes by torch runs under torch's limits for a process. While chats are answered by the
base and its adapters, documents are ingested and searched and an adapter is trained; the card is asked all the while
how much of it is taken. In the small the same runs on the CPU, without limits.
"""

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from core.config import Device
from core.layout import DataDir
from scripts.bench_gpu_budget import (
    ADAPTERS,
    CARD_BYTES,
    CONTEXT,
    INDEXED_DIMENSION,
    INDEXED_VECTORS,
    TRAINER,
    draw_budget,
    limit_memory,
    make_shared_engine,
    read_peak,
)
from scripts.bench_gpu_folders import EMBEDDER, write_embedder, write_llama
from scripts.bench_gpu_probe import read_version
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong
from scripts.bench_gpu_workers import running_workers, work_until_called_off
from serve.card_budget import CONTEXT_BYTES, GIB, CardBudget
from serve.engine_command import EngineConfig

WATCHED_EVERY_S = 0.25
STARTED_WITHIN_S = 180
NEEDS = ("vllm", "bitsandbytes", "httpx", "aiohttp", "faiss", "sqlalchemy", "Stemmer", "sentence_transformers")


@dataclass(slots=True)
class Watch:
    """How much of the card is taken, as the card itself says, beyond what was when this began.

    Attributes:
        device: The card; on a CPU nothing is known.
        before: Bytes that were taken then.
        most: The most since.
        marks: Bytes at each mark, by its name, in order.
    """

    device: torch.device
    before: int = 0
    most: int = 0
    marks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is taken now."""
        self.before = self._read()

    def mark(self, name: str) -> None:
        """Note what is taken now."""
        self.marks[name] = self.look()

    def look(self) -> int:
        """Return what is taken now, in bytes."""
        taken = self._read() - self.before
        self.most = max(self.most, taken)
        return taken

    async def go_on(self) -> None:
        """Look again and again until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(WATCHED_EVERY_S)

    def _read(self) -> int:
        if self.device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free


def measure_shared(setting: Setting) -> list[Figure]:
    """Serve, ingest and train on one card of 24 GB at the same time."""
    if read_version("loam") is None:
        raise Unavailable("documents are parsed by an installed Loam: pip install --no-deps --no-build-isolation -e .")
    if setting.device.type == "cuda":
        found = torch.cuda.get_device_properties(setting.device).total_memory
        if found <= CARD_BYTES:
            raise Unavailable(f"wanted a card of more than 24 GiB, to make it one of 24, found {found / GIB:.1f}")
    return asyncio.run(_measure_shared(setting))


async def _measure_shared(setting: Setting) -> list[Figure]:
    from scripts.bench_gpu_serve import running_engine

    budget = draw_budget()
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        data = DataDir(Path(folder))
        model, adapters = write_llama(setting, data, ADAPTERS)
        write_embedder(setting, data)
        watch = Watch(setting.device)
        looking = asyncio.create_task(watch.go_on())
        try:
            async with running_engine(setting, model, adapters, shrink_engine(setting, budget)) as engine:
                watch.mark("vLLM")
                async with running_workers(
                    list_commands(setting, data, budget), setting.folder, STARTED_WITHIN_S, watch.mark
                ) as workers:
                    served = await ask_for_a_while(setting, engine, [model.name, *(path.name for path in adapters)])
                    found = {worker.name: await worker.finish() for worker in workers}
        finally:
            looking.cancel()
    if watch.most > CARD_BYTES:
        raise Wrong(f"wanted at most {CARD_BYTES / GIB:.0f} GiB of the card, found {watch.most / GIB:.2f} taken")
    return [
        Figure("answers meanwhile", float(served), "", "all answered"),
        Figure("documents ingested and found", float(found["ingestion"]["documents"]), ""),
        Figure("training steps", float(found["training"]["units"]), ""),
        *compare_with_budget(setting, budget, watch, found),
    ]


def shrink_engine(setting: Setting, budget: CardBudget) -> EngineConfig | None:
    """Return vLLM's settings with the memory that it is told of 24 GB, as a share of the card that is there."""
    if setting.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(setting.device).total_memory
    return replace(make_shared_engine(), gpu_memory_utilization=budget.utilization * budget.card / total)


def list_commands(setting: Setting, data: DataDir, budget: CardBudget) -> dict[str, list[str]]:
    """Return what starts the ingestion and the training job, each with its limit."""
    limits = {
        "ingestion": budget.shares["embedder"],
        "training": budget.shares[TRAINER] - CONTEXT_BYTES,  # the context is not torch's to count
    }
    told = {"device": setting.device.type, "is_small": setting.is_small, "data": str(data.root)}
    return {
        name: [sys.executable, "-m", "scripts.bench_gpu_one_card", json.dumps({**told, "job": name, "limit": limit})]
        for name, limit in limits.items()
    }


async def ask_for_a_while(setting: Setting, engine: Any, models: list[str]) -> int:
    """Ask all models in turn, many at once, for some seconds; return how many answers there were."""
    from scripts.bench_gpu_serve import measure_load

    count, ends = 0, time.monotonic() + setting.pick(20.0, 0.0)
    while not count or time.monotonic() < ends:
        concurrency, tokens = setting.pick((32, 256), (4, 8))
        count += (await measure_load(engine.client, models, concurrency, setting.pick(2, 3), tokens)).requests
    return count


def compare_with_budget(
    setting: Setting, budget: CardBudget, watch: Watch, found: dict[str, dict[str, Any]]
) -> list[Figure]:
    """Return what each took of the card beside its line in the budget; nothing without a card."""
    if setting.device.type != "cuda":
        return []
    lines = {
        "vLLM": budget.utilization * budget.card,
        "ingestion": budget.shares["embedder"] + budget.shares["indexes"] + budget.shares[CONTEXT],
        "training": budget.shares[TRAINER],
    }
    figures, before = [], 0
    for name, taken in watch.marks.items():
        goal = f"at most {lines[name] / GIB:.2f}"
        figures.append(Figure(f"taken by {name}, at its start", (taken - before) / GIB, "GiB", goal))
        before = taken
    for name, report in found.items():
        figures.append(Figure(f"most memory of tensors in {name}", report["peak"] / GIB, "GiB"))
    return [*figures, Figure("most of the card", watch.most / GIB, "GiB", f"at most {budget.card / GIB:.0f}")]


def prepare_ingestion(setting: Setting) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """Return what ingests a few documents more and finds one of them, beside an index of as many vectors as planned."""
    import numpy as np

    from retrieval.card_index import build_card_index
    from retrieval.config import ChunkingConfig, EmbedderConfig, ParsingConfig
    from retrieval.embedding import open_embedder
    from retrieval.ingest import Tools, ingest_files
    from retrieval.searcher import Searcher
    from retrieval.source import list_files
    from scripts.bench_gpu_retrieval import find_place, make_vectors

    config = EmbedderConfig(name=EMBEDDER, device=Device(setting.device.type))
    tools = Tools(open_embedder(setting.data, config), ChunkingConfig(), ParsingConfig())
    vectors = make_vectors(setting.pick(INDEXED_VECTORS, 2000), setting.pick(INDEXED_DIMENSION, 32))
    index = build_card_index(vectors, find_place(setting), kinds=["flat"])
    searcher = Searcher(setting.data, config, make_embedder=lambda: tools.embedder)
    files, words = setting.pick((64, 2000), (2, 60))
    numbers = itertools.count()
    written = 0

    def work() -> None:
        nonlocal written
        number = next(numbers)
        folder = setting.data.root / "documents" / str(number)
        folder.mkdir(parents=True)
        chance = np.random.default_rng(number)
        for name in range(files):
            said = " ".join(f"w{word}" for word in chance.integers(4, 300, words))
            (folder / f"{number}-{name}.txt").write_text(f"canary{number}x{name} {said}\n")
        report = ingest_files(setting.data, "shared", list_files(folder, setting.data), tools)
        if report.ingested != files:
            raise Wrong(f"wanted {files} documents ingested, found {report.ingested}")
        hits = searcher.search(["shared"], f"canary{number}x0", 5).hits
        if not hits or f"canary{number}x0" not in hits[0].text:
            raise Wrong(f"the document of canary{number}x0 was not found")
        index.find_rows(vectors[:256], 10)
        written += files

    return work, lambda: {"documents": written, "peak": read_peak(setting.device)}


def prepare_training(setting: Setting) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """Return a step of training on true NF4 with layers recomputed, one pack at once."""
    from scripts.bench_gpu_train import prepare_step

    prepared = prepare_step(setting, is_packed=True, keeps=False, is_recomputed=True, packs=1)

    def tell() -> dict[str, Any]:
        prepared.check_losses()
        return {"peak": read_peak(setting.device)}

    return prepared.run, tell


JOBS = {"ingestion": prepare_ingestion, "training": prepare_training}


def main(told: dict[str, Any]) -> None:
    """Be one of the two that work beside vLLM."""
    device = torch.device(told["device"])
    limit_memory(device, told["limit"])
    data = DataDir(Path(told["data"]))
    setting = Setting(device, told["is_small"], data, data.root)
    work_until_called_off(lambda: JOBS[told["job"]](setting))


SHARED_STEP = Step("serving, ingestion and training at once", measure_shared, needs=NEEDS)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
