"""Prove and measure the GPU path: `python scripts/bench_gpu.py [part=all|probe|train|memory|serve|retrieval]`.

Where the project is not installed, from its root: `python3 -m scripts.bench_gpu …`.

Each part is a process of its own, so that one that breaks the card's context does not take the others along, and is
ended when its time is over, and when the bench is. What was measured stands in bench_gpu.json before the next step
begins, with a verdict on each goal (bench_gpu_goals.py); run again, the bench goes on with what is missing. Where time
is short, `budget_s=` measures by worth (bench_gpu_plan.py). Parts say what they skipped and why. Without a card only
the small twins run (device=cpu); their speeds mean nothing. Needs torch, transformers, peft and accelerate; everything
else is used where it is installed, Hydra too.
"""

from core.offline import switch_offline

switch_offline()

import importlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import Device, PathsConfig, load_config, run_app
from core.errors import ConfigError, LoamError
from core.layout import DataDir, write_file
from core.logs import configure_logging
from scripts.bench_gpu_book import read_book, write_book
from scripts.bench_gpu_goals import MET, NOT_MEASURED, NOT_MET, judge_goals
from scripts.bench_gpu_plan import NOTHING, PLAN, WHOLE, Leg, find_patience, find_place
from train.config import HardwareConfig
from train.launch import let_segments_grow, show_one_card

if TYPE_CHECKING:
    from omegaconf import DictConfig

PARTS = {"probe": 60, "train": 480, "memory": 280, "retrieval": 400, "serve": 360}
"""The parts, in their order, and seconds after which no step of each begins: under 30 minutes in all."""
BOOK = "bench_gpu.json"
TABLE = "bench_gpu.md"
GRACE_S = 30
LEAST_S = 10
TOO_LONG, CONTEXT_BROKEN = -1000, 75
"""Endings of a part's process: ended by us, and ended by itself because the card's context was of no use any more."""
ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
HEAD = ("part", "step", "figure", "value", "goal")
GOALS_HEAD = ("goal", "wanted", "measured", "verdict", "why")


class Part(Enum):
    """What is measured."""

    all = "all"
    probe = "probe"
    train = "train"
    memory = "memory"
    serve = "serve"
    retrieval = "retrieval"


class Output(Enum):
    """How the figures are printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_gpu.py can be told.

    Attributes:
        part: One part, or all of them one after the other.
        device: Where; on a CPU each part runs its small twin.
        limit_s: Most seconds of a part after which no step begins, 10 to 3600; each has its own limit below 480.
        budget_s: Most seconds of all that is run, 60 to 3600: steps go by worth, and those that no longer fit are
            named. null: part by part.
        folder: Where the book and the table go; null: reports/bench_gpu of the data directory.
        fresh: Whether to measure anew what the book holds of this machine and commit.
        output: How the figures are printed at the end.
        unsloth_python: Python of an environment in which Unsloth is installed.
        worker: Set by the bench itself, for the processes that run one part each.
        leg: Set by the bench itself: which steps of the part, by their place in the order of worth.
        paths: Where the data directory is.
    """

    part: Part = Part.all
    device: Device = Device.auto
    limit_s: int = 480
    budget_s: int | None = None
    folder: str | None = None
    fresh: bool = False
    output: Output = Output.table
    unsloth_python: str = ".venv-unsloth/bin/python"
    worker: bool = False
    leg: int | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key, value, least in (("limit_s", self.limit_s, LEAST_S), ("budget_s", self.budget_s, 60)):
            if value is not None and not least <= value <= 3600:
                raise ConfigError(f"{key}: wanted {least} to 3600, found {value}", param=key)

    @property
    def results(self) -> Path:
        """The folder of the book."""
        return Path(self.folder) if self.folder else Path(self.paths.data_dir) / "reports" / "bench_gpu"


def main(composed: "DictConfig") -> None:
    """Run the bench, or one of its parts."""
    run_bench(load_config(composed, BenchConfig))


def run_bench(config: BenchConfig) -> None:
    """Run the wanted parts, each in a process, and show the book."""
    configure_logging()
    if config.worker:
        threading.Thread(target=end_with_the_bench, daemon=True).start()
        run_part(config)
        return
    check_folder(config.results)
    parts = list(PARTS) if config.part is Part.all else [config.part.value]
    if config.budget_s is None:
        for part in parts:
            run_apart(part, config)
            write_page(config.results / BOOK)
    else:
        run_within(config.budget_s, [leg for leg, one in enumerate(PLAN) if one.part in parts], config)
    show(config)


def check_folder(folder: Path) -> None:
    """See that the book can be written, before anything is measured.

    Raises:
        ConfigError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ConfigError(f"folder: wanted one that can be written, found {error}", param="folder") from error


def end_with_the_bench() -> None:
    """Wait until the bench is gone, however it went, and end this process with all that it started.

    A part is no child of the terminal's session: nobody else would end it, and it would go on using the card.
    """
    while os.read(0, 1):  # its other end is the bench's
        continue
    os.killpg(0, signal.SIGKILL)


def run_apart(part: str, config: BenchConfig) -> None:
    """Run a part in a process of its own, end it when its time is over, and put down where it ended badly.

    A step that broke the card's context takes the process along, and the part goes on in another without it.
    """
    limit_s = min(config.limit_s, PARTS[part])
    ends = time.monotonic() + limit_s
    print(f"bench_gpu: {part}, at most {limit_s + GRACE_S} s", file=sys.stderr, flush=True)
    ending = start_part(part, config, limit_s, is_fresh=config.fresh)
    while ending == CONTEXT_BROKEN and (left_s := int(ends - time.monotonic())) >= LEAST_S:
        ending = start_part(part, config, left_s, is_fresh=False)
    if ending == TOO_LONG:
        note_ending(config.results / BOOK, part, f"a step did not end within {limit_s + GRACE_S} s")
    elif ending not in {0, CONTEXT_BROKEN}:
        note_ending(config.results / BOOK, part, f"its process ended with {ending}")


def run_within(budget_s: int, legs: list[int], config: BenchConfig) -> None:
    """Run steps by worth, and name those for which no time was left.

    Args:
        budget_s: Seconds for all of them; what still runs then is ended.
        legs: Which of PLAN, in their order.
        config: Of the bench.
    """
    ends = time.monotonic() + budget_s
    for number in legs:
        leg = PLAN[number]
        if number != legs[0] and not config.fresh and is_measured(config.results / BOOK, leg):
            continue  # the first one has seen to it that the book is this machine's
        if not run_leg(number, config, ends):
            reason = f"none of the {budget_s} s were left; run it again to go on"
            note_steps(config.results / BOOK, leg.part, dict.fromkeys(leg.allowances, reason))
        write_page(config.results / BOOK)
        if NOTHING in read_book(config.results / BOOK)["parts"].get("probe", {}):
            return  # without a card, or without torch, the other parts would only say so again


def run_leg(number: int, config: BenchConfig, ends: float) -> bool:
    """Run the steps of a leg, in another process where one ended with a step; return whether there was time to begin.

    Args:
        number: Of the leg in PLAN.
        config: Of the bench.
        ends: By time.monotonic; no process outlives it.
    """
    leg, path, has_begun = PLAN[number], config.results / BOOK, False
    while (left_s := int(ends - time.monotonic())) >= LEAST_S:
        print(f"bench_gpu: {leg.part}: {', '.join(leg.allowances)}; {left_s} s left", file=sys.stderr, flush=True)
        ending = start_part(leg.part, config, left_s, is_fresh=config.fresh and not has_begun, leg=number)
        has_begun = True
        if ending in {0, TOO_LONG}:
            break
        if ending != CONTEXT_BROKEN and not note_loss(path, leg, ending):
            note_ending(path, leg.part, f"its process ended with {ending}")
            break
    return has_begun


def is_measured(path: Path, leg: Leg) -> bool:
    """Whether a book holds the figures of all steps of a leg: a process that finds nothing to do takes seconds too."""
    entries = read_book(path)["parts"].get(leg.part, {})
    return all(entries.get(name, {}).get("status") == "measured" for name in leg.allowances)


def note_loss(path: Path, leg: Leg, ending: int) -> bool:
    """Write down which step took its process along, so that the others go on without it; return whether one did."""
    entries = read_book(path)["parts"].get(leg.part, {})
    lost = [name for name in leg.allowances if entries.get(name, {}).get("status") == "begun"]
    for name in lost:
        wanted_s, reason = leg.allowances[name], f"its process ended with {ending}"
        if ending == -signal.SIGALRM:
            reason = f"wanted it within {wanted_s} s, found it at work after {find_patience(wanted_s)} s"
        note_steps(path, leg.part, {name: reason}, status="failed", ended_process=True)
    return bool(lost)


def start_part(part: str, config: BenchConfig, limit_s: int, *, is_fresh: bool, leg: int | None = None) -> int:
    """Run a part, or one leg of it, in a process of its own and return its exit code, or TOO_LONG."""
    options = {
        "part": part,
        "device": config.device.value,
        "limit_s": limit_s,
        "folder": config.results,
        "fresh": str(is_fresh).lower(),
        "unsloth_python": config.unsloth_python,
        "paths.data_dir": config.paths.data_dir,
        "worker": "true",
        "leg": "null" if leg is None else leg,
    }
    command = [sys.executable, __file__, *(f"{key}={value}" for key, value in options.items())]
    found = os.environ.get("PYTHONPATH")  # where the project is not installed, the parts find it all the same
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([found] if found else [])])}
    let_segments_grow(config.device, environment)  # as a run has it
    show_one_card(HardwareConfig(device=config.device), environment)
    return run_in_group(command, environment, limit_s + (GRACE_S if leg is None else 0))


def run_in_group(command: list[str], environment: dict[str, str], limit_s: float) -> int:
    """Run a program and return its exit code, or TOO_LONG; whatever it has started ends with it."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return TOO_LONG
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def note_ending(path: Path, part: str, ending: str) -> None:
    """Write into the book that a part broke off; what it measured stays."""
    note_steps(path, part, {WHOLE: ending}, status="failed")


def note_steps(path: Path, part: str, reasons: dict[str, str], status: str = "skipped", **more: bool) -> None:
    """Write into the book, from outside a part's process, how steps ended; what was measured stays."""
    content = read_book(path)
    entries = content["parts"].setdefault(part, {})
    for step, reason in reasons.items():
        if entries.get(step, {}).get("status") != "measured":
            entries[step] = {"status": status, "reason": reason, **more}
    write_book(path, content)


def run_part(config: BenchConfig) -> None:
    """Run one part in this process."""
    import torch

    from scripts.bench_gpu_probe import describe_machine
    from scripts.bench_gpu_steps import SKIPPED, Book, Setting, describe_missing, is_ours, run_steps

    has_card = torch.cuda.is_available()
    wants_twin = config.device is Device.cpu
    device = torch.device("cuda", 0) if has_card and not wants_twin else torch.device("cpu")
    book = Book(config.results / BOOK, describe_machine(device, "small" if wants_twin else "full"))
    part = config.part.value
    leg = None if config.leg is None else PLAN[config.leg]
    if config.fresh:
        book.forget(part, *(leg.allowances if leg else ()))
    book.forget(part, WHOLE, NOTHING)
    if not has_card and not wants_twin:
        reason = f"no CUDA card: torch {torch.__version__} sees none. The small twins run with device=cpu"
        print(f"bench_gpu: {part}: {reason}", flush=True)
        book.write(part, NOTHING, {"status": SKIPPED, "reason": reason})
        return
    options = {"unsloth_python": config.unsloth_python}
    setting = Setting(device, wants_twin, DataDir(Path(config.paths.data_dir)), config.results, options)
    try:
        steps = {step.name: step for step in importlib.import_module(f"scripts.bench_gpu_{part}").STEPS}
    except ImportError as error:
        if is_ours(error):
            raise
        book.write(part, NOTHING, {"status": SKIPPED, "reason": describe_missing(error)})
        return
    allowances = leg.allowances if leg else None
    wanted = [steps[name] for name in allowances or steps]
    if not run_steps(part, wanted, setting, book, STARTED + config.limit_s, allowances):
        sys.exit(CONTEXT_BROKEN)


def list_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each figure, and one for each step without any."""
    rows: list[tuple[str, ...]] = []
    parts = content["parts"]
    for part in sorted(parts, key=list(PARTS).index):
        for step, entry in sorted(parts[part].items(), key=lambda one: find_place(part, one[0])):
            if entry["status"] != "measured":
                rows.append((part, step, entry["status"], entry.get("reason", ""), ""))
                continue
            rows += [
                (part, step, figure["name"], f"{figure['value']:,.4g} {figure['unit']}", figure["goal"])
                for figure in entry["figures"]
            ]
            rows += [(part, step, one["name"], one["reason"], "") for one in entry.get("left_out", [])]
    return rows


def describe(machine: dict[str, Any]) -> str:
    """Return one line for people about the machine of a book."""
    versions = ", ".join(f"{name} {found}" for name, found in machine.get("versions", {}).items())
    card = machine.get("card", {})
    clocks = f", {card['clocks.sm']} of {card.get('clocks.max.sm', '?')}" if "clocks.sm" in card else ""
    clocks = f", no clocks: {card['error']}" if "error" in card else clocks
    name, commit, size = (machine.get(key, "?") for key in ("name", "commit", "size"))
    return f"{name}{clocks}; commit {commit}; {size} size; {versions}"


def list_goals(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each goal, always all of them."""
    rows: list[tuple[str, ...]] = []
    for one in judge_goals(content):
        value = "" if one["value"] is None else f"{one['value']:,.4g} {one['unit']}".strip()
        rows.append((one["goal"], one["wanted"], value, one["verdict"], one["why"]))
    return rows


def count_verdicts(content: dict[str, Any]) -> str:
    """Return how many goals stand how, as a line."""
    counts = Counter(row[3] for row in list_goals(content))
    return f"goals: {counts[MET]} met, {counts[NOT_MET]} not met, {counts[NOT_MEASURED]} not measured"


def render_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of a page."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def render_markdown(content: dict[str, Any]) -> str:
    """Return the book as a page: the figures, then the goals, so that the end of an output is the verdict."""
    figures, goals = render_rows(HEAD, list_rows(content)), render_rows(GOALS_HEAD, list_goals(content))
    return f"{describe(content['machine'])}\n\n{figures}\n\n{goals}\n\n{count_verdicts(content)}\n"


def write_page(path: Path) -> dict[str, Any]:
    """Write a book as a page beside itself, and return what it holds."""
    content = read_book(path)
    write_file(path.with_name(TABLE), render_markdown(content))
    return content


def show(config: BenchConfig) -> None:
    """Print the book, and write it as a page beside itself."""
    path = config.results / BOOK
    content = write_page(path)
    if config.output is Output.json:
        print(json.dumps(content))
    elif config.output is Output.markdown or importlib.util.find_spec("rich") is None:
        print(render_markdown(content))
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console, title = Console(width=None if sys.stdout.isatty() else 150), describe(content["machine"])
        for head, rows in ((HEAD, list_rows(content)), (GOALS_HEAD, list_goals(content))):
            table = Table(*head, title=title)
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
        print(count_verdicts(content))
    print(f"figures: {path}\npage:    {path.with_name(TABLE)}")


def read_command_line(arguments: list[str]) -> BenchConfig:
    """Return the configuration where Hydra is not installed: KEY=VALUE over the defaults, paths.data_dir among them.

    Raises:
        ConfigError: A key or a value is not known.
    """
    kinds: dict[str, Any] = {
        "part": Part,
        "device": Device,
        "output": Output,
        "limit_s": int,
        "budget_s": int,
        "leg": int,
    }
    flags = {"true": True, "false": False}
    known = {one.name for one in fields(BenchConfig)} - {"paths"}
    values: dict[str, Any] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        if key == "paths.data_dir":
            values["paths"] = PathsConfig(text)
        elif key not in known:
            raise ConfigError(f"{key}: no such configuration key. Known here: {', '.join(sorted(known))}.", param=key)
        elif text != "null":
            try:
                values[key] = flags[text] if key in {"fresh", "worker"} else kinds.get(key, str)(text)
            except (ValueError, KeyError) as error:
                raise ConfigError(f"{key}: found {text!r}. See conf/bench_gpu.yaml.", param=key) from error
    return BenchConfig(**values)


if __name__ == "__main__":
    if importlib.util.find_spec("hydra") is not None:
        run_app("bench_gpu", main)
    else:
        try:
            run_bench(read_command_line(sys.argv[1:]))
        except LoamError as fault:
            logging.getLogger("bench_gpu").debug("refused", exc_info=fault)
            print(f"error: {fault.message}", file=sys.stderr)
            sys.exit(fault.exit_code)
