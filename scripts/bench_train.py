"""Measure training speed against TRL: `python scripts/bench_train.py [lengths=full|mixed|both] [output=json]`.

Each arm is a process of its own that trains SmolLM2-135M (NF4, LoRA r16 on all linear layers, 8 rows a step) through
its trainer's own loop. A turn is one epoch over the same rows; arms take turns forwards and backwards, A-B-C C-B-A, and
wait while another has the machine. Before anything is timed, every arm computes loss and gradients of the same
micro-batch, which must agree. Non-padding tokens are counted; ratios are medians over rounds with a bootstrapped 95%
interval. `set=ladder` leaves out one technique after the other, `set=packing` judges packing by the loss on held-out
rows after the same epochs, `set=tuning` looks for the best settings of TRL.
Does not know the kernels; trainer.py and TRL do what they do in every run.
"""

from core.entry import begin_program

begin_program()

import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, ContractError, ModelNotFound, NotFound
from core.layout import DataDir
from core.logs import configure_logging
from scripts.bench_train_arms import (
    ARMS,
    FLOAT32,
    LADDER,
    MODEL,
    PACKING,
    PEERS,
    PROVED_ROWS,
    REFERENCE,
    TUNING,
    run_worker,
)
from train.tokens import Example

MARK = "bench:"
"""Opens the lines of a worker that are meant for the bench."""
FULL_LENGTH = 512
HELD_OUT_ROWS = 32
LARGEST_LOSS_GAP = 0.01
LARGEST_GRADIENT_GAP = 1.2
"""An arm in bfloat16 may be so much farther from float32's gradients than TRL's own bfloat16 is."""
LEAST_GRADIENT_GAP = 0.2
"""What bfloat16 may always be off, where TRL's is not at hand."""


class Output(Enum):
    """How the figures are printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


class Lengths(Enum):
    """Which rows."""

    full = "full"
    mixed = "mixed"
    both = "both"


class ArmSet(Enum):
    """Which arms."""

    peers = "peers"
    float32 = "float32"
    ladder = "ladder"
    packing = "packing"
    tuning = "tuning"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_train.py can be told.

    Attributes:
        source: Folder of support_train.jsonl and intents_train.jsonl.
        lengths: Rows of full length, of mixed lengths, or one after the other.
        set: Arms: TRL as peers, TRL in float32, ours with techniques left out, packing, or candidates for «TRL tuned».
        arms: Names of arms instead of a set's; the first is what the others are compared with.
        rows: Of a turn; eight are one optimizer step.
        rounds: Rounds that count; each arm has two turns in each.
        output: How the figures are printed at the end.
        worker: An arm's name and the file of its rows; the bench starts itself with it.
        paths: Where the data directory is.
    """

    source: str = "../shared/data"
    lengths: Lengths = Lengths.both
    set: ArmSet = ArmSet.peers
    arms: list[str] = field(default_factory=list)
    rows: int = 8
    rounds: int = 5
    output: Output = Output.table
    worker: str | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check the arms and the numbers."""
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise ConfigError(f"arms: wanted some of {', '.join(ARMS)}; found {', '.join(unknown)}", param="arms")
        if self.rows < PROVED_ROWS or self.rounds < 1:
            raise ConfigError(
                f"rows, rounds: wanted at least {PROVED_ROWS} and 1, found {self.rows} and {self.rounds}", param="rows"
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """What one arm did on one kind of rows.

    Attributes:
        arm: Its name.
        tokens_per_s: Median over rounds.
        ratio: Of the first arm's speed to this one's: median over rounds.
        low: Lower end of the ratio's 95% interval.
        high: Upper end.
        peak_mib: Most memory that its process ever had.
        loss: Of the micro-batch that all arms computed first.
        gradient_gap: Relative distance of its gradients from those in float32.
        valid_loss: On held-out rows, after all turns.
    """

    arm: str
    tokens_per_s: float
    ratio: float
    low: float
    high: float
    peak_mib: int
    loss: float
    gradient_gap: float
    valid_loss: float


class Worker:
    """An arm's process."""

    def __init__(self, arm: str, rows: Path, turns: int, data_dir: str) -> None:
        """Start it; it loads and waits."""
        self.arm = arm
        files = {"rows": rows, "held_out": rows.with_name("held_out"), "gradients": rows.with_name(f"{arm}.st")}
        job = {"arm": arm, "turns": turns, **{name: str(path) for name, path in files.items()}}
        rows.with_name(f"{arm}.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, __file__, f"worker={rows.with_name(f'{arm}.json')}", f"paths.data_dir={data_dir}"]
        self.log = rows.with_name(f"{arm}.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.proof = self.read()

    def read(self) -> dict[str, Any]:
        """Wait for the worker's next answer."""
        assert self.process.stdout is not None  # noqa: S101  (asked for above)
        for line in self.process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        self.log.seek(0)
        raise ContractError(f"bench: the arm {self.arm} ended early: {self.log.read()[-2000:]}")

    def go(self) -> dict[str, Any]:
        """Let it do what comes next and wait for it: an epoch, whose seconds come back, or after the last the score."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def take_turn(self) -> float:
        """Let it train one epoch; return its seconds."""
        return float(self.go()["seconds"])

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def main(composed: DictConfig) -> None:
    """Run the bench, or one of its arms."""
    configure_logging()
    config = load_config(composed, BenchConfig)
    if config.worker is not None:
        run_worker(
            json.loads(Path(config.worker).read_text(encoding="utf-8")), DataDir(Path(config.paths.data_dir)), say
        )
        return
    folder = DataDir(Path(config.paths.data_dir)).model(MODEL)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"wanted the model {MODEL} in {folder}, found none. Get it: "
            f"python scripts/models.py --data-dir {config.paths.data_dir} get {MODEL}"
        )
    kinds = ["full", "mixed"] if config.lengths is Lengths.both else [config.lengths.value]
    names = {ArmSet.peers: PEERS, ArmSet.float32: FLOAT32, ArmSet.ladder: LADDER}
    names |= {ArmSet.packing: PACKING, ArmSet.tuning: TUNING}
    results = {kind: measure(kind, config.arms or names[config.set], config) for kind in kinds}
    show(results, config)


def say(**answer: Any) -> None:
    """Answer the bench from inside a worker."""
    print(f"{MARK}{json.dumps(answer)}", flush=True)


def measure(kind: str, names: list[str], config: BenchConfig) -> list[Measured]:
    """Run all arms on one kind of rows."""
    with tempfile.TemporaryDirectory(prefix="loam-bench-") as folder:
        rows = Path(folder) / "rows"
        where = Path(config.source), DataDir(Path(config.paths.data_dir))
        picked = pick_rows(kind, "train", config.rows, *where)
        rows.write_text(json.dumps(picked), encoding="utf-8")
        held_out = pick_rows(kind, "valid", HELD_OUT_ROWS, *where)
        rows.with_name("held_out").write_text(json.dumps(held_out), encoding="utf-8")
        tokens = sum(len(row["input_ids"]) for row in picked)
        turns = 1 + 2 * config.rounds
        workers: list[Worker] = []
        try:
            for name in names:
                note(f"{kind}: loading {name}")
                workers.append(Worker(name, rows, turns, config.paths.data_dir))
            gaps = prove_equal(workers, reference := Worker(REFERENCE, rows, 1, config.paths.data_dir))
            reference.close()
            seconds = take_turns(kind, workers, config.rounds)
            ends = {worker.arm: worker.go() for worker in workers}
        finally:
            for worker in workers:
                worker.close()
    rates = {arm: [2 * tokens / pair for pair in pairs] for arm, pairs in seconds.items()}
    first = rates[names[0]]
    return [
        Measured(
            worker.arm,
            round(statistics.median(rates[worker.arm]), 1),
            *bootstrap([a / b for a, b in zip(first, rates[worker.arm], strict=True)]),
            ends[worker.arm]["peak_mib"],
            round(worker.proof["loss"], 5),
            round(gaps[worker.arm], 4),
            round(ends[worker.arm]["valid_loss"], 5),
        )
        for worker in workers
    ]


def take_turns(kind: str, workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Let every arm train once to warm up, then forwards and backwards; return the seconds of each arm's two turns."""
    for worker in workers:
        worker.take_turn()
    seconds: dict[str, list[float]] = {worker.arm: [] for worker in workers}
    for number in range(1, rounds + 1):
        there = {worker.arm: worker.take_turn() for worker in workers}
        back = {worker.arm: worker.take_turn() for worker in reversed(workers)}
        for worker in workers:
            seconds[worker.arm].append(there[worker.arm] + back[worker.arm])
        note(f"{kind}: round {number} of {rounds}: " + ", ".join(f"{a} {s[-1] / 2:.1f} s" for a, s in seconds.items()))
    return seconds


def prove_equal(workers: list[Worker], reference: Worker) -> dict[str, float]:
    """Compare the arms' loss and gradients of one micro-batch with those in float32.

    Args:
        workers: The arms.
        reference: TRL in float32.

    Returns:
        The relative distance of each arm's gradients from the reference's.

    Raises:
        ContractError: An arm computes something else.
    """
    from safetensors.torch import load_file

    expected = load_file(reference.proof["gradients"])
    norm = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    gaps = {}
    for worker in workers:
        found = load_file(worker.proof["gradients"])
        if found.keys() != expected.keys():
            raise ContractError(f"bench: {worker.arm} trains other parameters than {reference.arm}")
        gap = sum(float((found[name] - expected[name]).square().sum()) for name in expected) ** 0.5 / norm
        loss_gap = abs(worker.proof["loss"] / reference.proof["loss"] - 1)
        if loss_gap > LARGEST_LOSS_GAP:
            raise ContractError(
                f"bench: {worker.arm} has a loss of {worker.proof['loss']:.5f}, {reference.arm} one of "
                f"{reference.proof['loss']:.5f}: they do not compute the same"
            )
        gaps[worker.arm] = gap
    limit = max(
        LARGEST_GRADIENT_GAP * max((gaps[a] for a in gaps if a.startswith("trl")), default=0.0), LEAST_GRADIENT_GAP
    )
    wrong = {arm: gap for arm, gap in gaps.items() if gap > limit}
    if wrong:
        raise ContractError(f"bench: gradients farther than {limit:.3f} from {reference.arm}'s: {wrong}")
    note("equal: " + ", ".join(f"{w.arm} loss {w.proof['loss']:.5f}, gradients {gaps[w.arm]:.4f} off" for w in workers))
    return gaps


def bootstrap(ratios: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Return the median of ratios and the 95% interval of it, by resampling rounds."""
    chance = random.Random(0)  # noqa: S311  (statistics)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(draws))
    return (
        round(statistics.median(ratios), 3),
        round(medians[int(0.025 * draws)], 3),
        round(medians[int(0.975 * draws)], 3),
    )


def pick_rows(kind: str, part: str, count: int, source: Path, data_dir: DataDir) -> list[Example]:
    """Return the token ids and labels of a turn's rows, the same in every run.

    Args:
        kind: `full` or `mixed`.
        part: `train` or `valid`.
        count: How many.
        source: Folder of the shared data.
        data_dir: Where the model is.

    Raises:
        NotFound: The data are not there.
    """
    from train.encoding import encode_chat
    from train.model import load_tokenizer
    from train.template import find_template

    folder = data_dir.model("smollm2-135m-instruct")
    tokenizer, template = load_tokenizer(folder), find_template(folder)

    def read(name: str) -> list[dict[str, Any]]:
        if not (source / name).is_file():
            raise NotFound(f"source: wanted {name} in {source}, found none. Give the folder: source=DIR")
        return [json.loads(line) for line in (source / name).read_text(encoding="utf-8").splitlines()]

    chats = [encode_chat(row, tokenizer, template, None) for row in read(f"support_{part}.jsonl")[: 20 * count]]
    if kind == "full":
        rows = [row for row in chats if len(row["input_ids"]) >= FULL_LENGTH][:count]
        return [{"input_ids": row["input_ids"][:FULL_LENGTH], "labels": row["labels"][:FULL_LENGTH]} for row in rows]
    questions = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in read(f"intents_{part}.jsonl")[: count // 2]
    ]
    short = [encode_chat(row, tokenizer, template, None) for row in questions]
    mixed = chats[: count // 2] + short
    random.Random(0).shuffle(mixed)  # noqa: S311
    return mixed


def note(line: str) -> None:
    """Say how far the bench is."""
    print(line, file=sys.stderr, flush=True)


def show(results: dict[str, list[Measured]], config: BenchConfig) -> None:
    """Print the figures."""
    if config.output is Output.json:
        figures = {kind: [asdict(arm) for arm in arms] for kind, arms in results.items()}
        versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")}
        print(json.dumps({"set": config.set.value, "rounds": config.rounds, "versions": versions, "data": figures}))
        return
    columns = ["arm", "tokens/s", "ratio", "95%", "peak MiB", "loss", "gradients off", "held-out loss"]
    for kind, arms in results.items():
        cells = [
            [a.arm, f"{a.tokens_per_s:,.0f}", f"{a.ratio:.2f}", f"{a.low:.2f} to {a.high:.2f}", f"{a.peak_mib:,}",
             f"{a.loss:.4f}", f"{a.gradient_gap:.4f}", f"{a.valid_loss:.4f}"]
            for a in arms
        ]  # fmt: skip
        if config.output is Output.markdown:
            print(f"\n### {kind}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            print("\n".join(f"| {' | '.join(row)} |" for row in cells))
            continue
        table = Table(*columns, title=f"{kind}: how many times as fast as each arm {arms[0].arm} is")
        for row in cells:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    run_app("bench_train", main)
