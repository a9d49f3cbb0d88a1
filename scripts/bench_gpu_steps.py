"""The steps of scripts/bench_gpu.py: what each one needs, how it ends, and the book in which its figures stand.

A step that cannot run says why and is no failure; one that fails does not keep the others from running; what was
measured is on disk before the next step begins. Does not know what the steps measure.
"""

import gc
import importlib.util
import logging
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.layout import DataDir
from scripts.bench_gpu_book import exchange_book, write_book
from scripts.bench_gpu_plan import find_patience

logger = logging.getLogger(__name__)

MEASURED, SKIPPED, FAILED, BEGUN = "measured", "skipped", "failed", "begun"
OURS = frozenset({"core", "evaluation", "retrieval", "scripts", "serve", "train"})
"""Packages that are never missing: what cannot be imported from them is a fault."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: What it is.
        value: As measured.
        unit: Of the value.
        goal: What it is held against, in words; empty where nothing is.
    """

    name: str
    value: float
    unit: str
    goal: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a step would have measured too.

    Attributes:
        name: What it is.
        reason: Why it was not.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and at which size the steps run.

    Attributes:
        device: The card, or the CPU for the small twin of each step.
        is_small: Whether to compute the same in the small.
        data: Where models lie that correctness is shown with.
        folder: Where the book lies, and files that a step leaves.
        options: What the command line says beside: `unsloth_python`.
    """

    device: torch.device
    is_small: bool
    data: DataDir
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: bfloat16 on a card, float32 in the small."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def pick(self, full: Any, small: Any) -> Any:
        """Return the one that fits the size."""
        return small if self.is_small else full


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to measure.

    Attributes:
        name: In the book and in the table.
        run: Measures; returns its figures and what it left out, or raises `Unavailable`.
        needs: Modules that must be importable.
        card_only: Whether there is nothing to run without a card.
    """

    name: str
    run: Callable[[Setting], Sequence[Figure | LeftOut]]
    needs: tuple[str, ...] = ()
    card_only: bool = False


class Unavailable(Exception):
    """A step found that what it needs is not here."""


class Wrong(Exception):
    """A step computed something else than its reference; nothing is timed."""


class Book:
    """What was measured on this machine at this commit, on disk."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        """Open a book, or begin one where there is none of the same machine; another machine's is put aside.

        Args:
            path: The JSON file.
            machine: What identifies the measurements: card, versions, commit, size.
        """
        self.path = path
        self.content: dict[str, Any] = {"machine": machine, "parts": exchange_book(path, machine["identity"])}

    def forget(self, part: str, *steps: str) -> None:
        """Drop what the book says of some steps of a part, or of all of it."""
        if not steps:
            self.content["parts"].pop(part, None)
        for step in steps:
            self.content["parts"].get(part, {}).pop(step, None)

    def is_settled(self, part: str, step: str) -> bool:
        """Whether a step is not to be run again: its figures stand in the book, or it took its process along."""
        entry = self.content["parts"].get(part, {}).get(step, {})
        return bool(entry.get("status") == MEASURED or entry.get("broke_context") or entry.get("ended_process"))

    def write(self, part: str, step: str, entry: dict[str, Any]) -> None:
        """Put down how a step ended."""
        self.content["parts"].setdefault(part, {})[step] = entry
        write_book(self.path, self.content)


def run_steps(
    part: str,
    steps: Sequence[Step],
    setting: Setting,
    book: Book,
    deadline: float,
    allowances: Mapping[str, int] | None = None,
) -> bool:
    """Run the steps of a part that the book does not hold yet; return whether the card is of use to the end.

    Args:
        part: Its name.
        steps: In order; what shows correctness comes before what is timed.
        setting: Where and at which size.
        book: Takes what each came to.
        deadline: By time.monotonic; no step begins after it.
        allowances: Seconds that a step wants, by its name: it begins only where they are left before the deadline, and
            one that takes several times as long ends this process. None: every step begins that has time to.
    """
    for step in steps:
        if book.is_settled(part, step.name):
            logger.info("%s/%s: settled before", part, step.name)
            continue
        began = time.monotonic()
        wanted_s = (allowances or {}).get(step.name, 0)
        gap = find_gap(step, setting, deadline - began, wanted_s)
        entry: dict[str, Any] = {"status": SKIPPED, "reason": gap}
        if not gap:
            book.write(part, step.name, {"status": BEGUN, "reason": "its process ended before it did"})
            with ending_process_after(find_patience(wanted_s) if wanted_s else None):
                entry = _end_step(step, setting)
        entry["seconds"] = round(time.monotonic() - began, 1)
        if entry["status"] == FAILED and (fault := find_context_fault(setting.device)):
            entry |= {"broke_context": True, "reason": f"{entry['reason']} (left out from now on: {fault})"}
        book.write(part, step.name, entry)
        logger.info("%s/%s: %s %s", part, step.name, entry["status"], entry.get("reason", ""))
        if entry.get("broke_context"):
            return False
    return True


@contextmanager
def ending_process_after(limit_s: float | None) -> Iterator[None]:
    """End this process where the block takes longer: what hangs in a kernel or a compiler hears nothing else."""
    if limit_s is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # nobody handles SIGALRM
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def find_context_fault(device: torch.device) -> str:
    """Return why a process can use its card no more, after an illegal access say; empty where it can."""
    try:
        synchronize(device)
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0][:100]
    return ""


def find_gap(step: Step, setting: Setting, left_s: float, wanted_s: int) -> str:
    """Return why a step cannot begin; empty where it can.

    Args:
        step: Which.
        setting: Where and at which size.
        left_s: Seconds before the deadline.
        wanted_s: Its allowance; 0 for none.
    """
    missing = [name for name in step.needs if not can_import(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if step.card_only and setting.device.type != "cuda":
        return "wanted a CUDA card, found none"
    if wanted_s and left_s < wanted_s:
        return f"wanted {wanted_s} s, {max(0, left_s):.0f} s of the budget were left; run it again to go on"
    return "the part's time was over; run it again to go on" if left_s <= 0 else ""


def _end_step(step: Step, setting: Setting) -> dict[str, Any]:
    """Run one step and return what the book says of it."""
    try:
        found = step.run(setting)
    except Unavailable as error:
        return {"status": SKIPPED, "reason": str(error)}
    except Exception as error:
        if isinstance(error, ImportError) and not is_ours(error):
            return {"status": SKIPPED, "reason": describe_missing(error)}
        logger.exception("%s", step.name)
        first = (str(error).strip().splitlines() or [""])[0]
        return {"status": FAILED, "reason": f"{type(error).__name__}: {first[:300]}"}
    finally:
        if setting.device.type == "cuda":
            torch.compiler.reset()  # what was compiled for another model would count for this one's widths and limits
            free_memory(setting.device)
    return {
        "status": MEASURED,
        "figures": [asdict(one) for one in found if isinstance(one, Figure)],
        "left_out": [asdict(one) for one in found if isinstance(one, LeftOut)],
    }


def is_ours(error: ImportError) -> bool:
    """Whether what could not be imported is this project's own, which is a fault and no missing package."""
    return (error.name or "").partition(".")[0] in OURS


def describe_missing(error: ImportError) -> str:
    """Return what could not be imported, as a clause."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"not installed: {error.name}"
    return f"cannot be imported: {error}"


def free_memory(device: torch.device) -> None:
    """Give back to a card what nothing holds any more; models of PEFT are cycles, which only a collection ends."""
    if device.type == "cuda" and not find_context_fault(device):
        gc.collect()
        torch.cuda.empty_cache()


def can_import(name: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(run: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 2, at_once: int = 1) -> float:
    """Return the median seconds of a call, by the device's own clock on a card.

    Args:
        run: What is timed.
        device: Where it runs.
        repeats: Times that count.
        warm_up: Calls before them.
        at_once: Calls behind one another in each of them, so that a card need not wait for the next short one.
    """
    for _ in range(warm_up):
        run()
    synchronize(device)
    seconds: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            for _ in range(at_once):
                run()
            end.record()
            end.synchronize()
            seconds.append(float(start.elapsed_time(end)) / 1000)
        else:
            began = time.perf_counter()
            for _ in range(at_once):
                run()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / at_once


def compare(name: str, found: torch.Tensor, exact: torch.Tensor, limit: float) -> Figure:
    """Return the relative distance from a reference.

    Raises:
        Wrong: It is larger than the limit, or not a number.
    """
    wanted = exact.detach().double()
    gap = float((found.detach().double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not gap <= limit:
        raise Wrong(f"{name}: wanted at most {limit:g} off, found {gap:g}")
    return Figure(name, gap, "of the norm", f"at most {limit:g}")
