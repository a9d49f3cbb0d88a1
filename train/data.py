"""Files of rows: checked whole before anything costly starts, then read again, one row at a time.

Reads through core, which checks each row's form and turns every format into messages; adds Parquet, and what the
model's template cannot render. Does not know a tokenizer; encoding.py does.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InvalidFile, NotFound
from core.faults import Fault, Record, refuse_faults
from core.formats import Layout, choose_layout, normalize_records
from core.layout import sha256_file
from core.training_file import read_records
from train.config import DataConfig, resolve_path
from train.parquet import ENDINGS as PARQUET_ENDINGS
from train.parquet import read_parquet
from train.template import TrainingTemplate


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows that passed every check that needs no tokenizer; its rows stay on disk.

    Attributes:
        path: Where it lies.
        sha256: Of its bytes.
        rows: How many.
        layout: How they are understood.
        size_bytes: Of the file when it was checked.
        modified_ns: When it had been written, in nanoseconds.
    """

    path: Path
    sha256: str
    rows: int
    layout: Layout
    size_bytes: int
    modified_ns: int

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, row in normal form) again, one at a time.

        Raises:
            InvalidFile: The file is no longer the one that was checked.
        """
        self._refuse_change()
        yield from refuse_faults(self.path, normalize_records(open_records(self.path, "data"), self.layout), "data")
        self._refuse_change()

    def _refuse_change(self) -> None:
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.modified_ns):
            raise InvalidFile(f"{self.path}: changed after it was checked. Start again.", param="data")


def open_records(path: Path, param: str) -> Iterator[Record]:
    """Return the records of a file as they stand there: JSON lines, CSV or Parquet, by its ending.

    Raises:
        NotFound: There is no such file (when the first record is asked for).
    """
    return read_parquet(path, param) if path.suffix.lower() in PARQUET_ENDINGS else read_records(path, param)


def check_data(
    path: Path, options: DataConfig, template: TrainingTemplate | None, param: str = "data.train"
) -> DataFile:
    """Read a whole file once and keep nothing of it, or refuse it with every fault named.

    Args:
        path: JSON lines, CSV or Parquet.
        options: The format and the columns, where they are told, and the system message.
        template: The training template, where it is known: rows that it cannot render are faults too.
        param: Configuration key of the path, for the errors.

    Raises:
        NotFound: There is no such file, or no file with the system message.
        TrainingDataError: One or more rows are faulty.
    """
    status = path.stat() if path.is_file() else os.stat_result([0] * 10)
    system = _read_system_message(options.system_file) if options.system_file else None
    layout = choose_layout(open_records(path, param), options.format, options.columns, system)
    records = normalize_records(open_records(path, param), layout)
    if template is not None:
        records = _refuse_tools(records, template)
    rows = sum(1 for _ in refuse_faults(path, records, param))
    return DataFile(path, sha256_file(path), rows, layout, status.st_size, status.st_mtime_ns)


def _read_system_message(name: str) -> str:
    """Return the text of data.system_file.

    Raises:
        NotFound: There is no such file.
        InvalidFile: It holds no text.
    """
    path = resolve_path(name)
    if not path.is_file():
        raise NotFound(f"data.system_file: wanted a text file, found none at {path}. Check the path.", param="data")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        problem = f"data.system_file: not UTF-8 at byte {error.start} of {path}. Save the file as UTF-8."
        raise InvalidFile(problem, param="data.system_file") from error
    if not text:
        raise InvalidFile(f"data.system_file: wanted a text, found {path} empty. Fill it.", param="data.system_file")
    return text


def _refuse_tools(records: Iterable[Record], template: TrainingTemplate) -> Iterator[Record]:
    """Add a fault to each row whose tools the template has no form for."""
    for line, row, faults in records:
        if row is not None and not template.takes_tools and _uses_tools(row):
            problem = f"the chat template of {template.name} has no form for tools"
            yield line, None, [*faults, Fault(line, "messages", problem, "Remove the row or choose another model")]
        elif row is not None and not template.takes_parallel_calls and _calls_in_parallel(row):
            problem = (
                f"found several tool calls in one message; the chat template of {template.name} has a form for one"
            )
            fix = "Put each call into a message of its own, followed by its result"
            yield line, None, [*faults, Fault(line, "messages", problem, fix)]
        else:
            yield line, row, faults


def _uses_tools(row: dict[str, Any]) -> bool:
    tells = (message.get("tool_calls") or message["role"] == "tool" for message in _list_messages(row))
    return bool(row.get("tools")) or any(tells)


def _calls_in_parallel(row: dict[str, Any]) -> bool:
    return any(len(message.get("tool_calls") or []) > 1 for message in _list_messages(row))


def _list_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row["messages"] if "messages" in row else [*row["prompt"], *row["chosen"], *row["rejected"]]
