"""What is wrong with training data: one fault, and many as one refusal.

Knows nothing of formats; core.chat and core.formats find the faults, core.training_file reads the lines.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import TrainingDataError

MAX_FAULTS_SHOWN = 100
"""Faults that a message says in full; the rest is counted. scripts/check_data.py prints every one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a training file.

    Attributes:
        line: Counted from 1; 0 for the file as a whole.
        field: Path inside the row, such as `messages[2].role`; empty for the whole row.
        problem: What was wanted and what was found.
        fix: What to do about it.
    """

    line: int
    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        """Return the fault as one line for people."""
        where = f"line {self.line}" if self.line else "file"
        return f"{where}{', ' + self.field if self.field else ''}: {self.problem}. {self.fix}."


Record = tuple[int, Any, list[Fault]]
"""A line's number from 1, its value (None where it has none) and its faults."""

NOTHING_FOUND = Fault(0, "", "wanted at least one row, found none", "Put one row on each line")


def describe_faults(path: Path, faults: list[Fault], total: int | None = None) -> str:
    """Return the faults of a file as one message, the first ones in full and the rest counted.

    Args:
        path: The file.
        faults: At least the first MAX_FAULTS_SHOWN of them.
        total: How many there are; None for as many as were given.
    """
    count = len(faults) if total is None else total
    shown = "".join(f"\n  {fault}" for fault in faults[:MAX_FAULTS_SHOWN])
    rest = f"\n  … and {count - MAX_FAULTS_SHOWN:,} more" if count > MAX_FAULTS_SHOWN else ""
    return f"{path}: {count:,} fault{'s' * (count != 1)} in the training data:{shown}{rest}"


def refuse_faults(path: Path, records: Iterable[Record], param: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the good rows, and refuse the file at its end with every fault that was met on the way.

    Keeps no row, so that a file may be larger than memory. Rows count only when the end was reached without an error.

    Args:
        path: For the message.
        records: As core.training_file yields them.
        param: Configuration key or request field for the error.

    Yields:
        (line number, row).

    Raises:
        TrainingDataError: One or more rows are faulty, or there is none.
    """
    faults: list[Fault] = []
    total = rows = 0
    for line, row, found in records:
        total += len(found)
        faults += found[: MAX_FAULTS_SHOWN - len(faults)]
        if row is not None and not found:
            rows += 1
            yield line, row
    if not rows and not total:
        faults, total = [NOTHING_FOUND], 1
    if total:
        raise TrainingDataError(describe_faults(path, faults, total), param=param)
