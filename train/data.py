"""From files of rows to token ids and labels, with what was found on the way.

Reads rows through core, which checks their form and turns every format into messages; renders them with a training
template, and marks what is learned: the assistant's turns. Keeps each row's line number, so that whatever is wrong with
a row is said with its line. Does not know about batches.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from core.errors import InvalidFile, NotFound, TrainingDataError
from core.faults import Fault, Record, describe_faults, refuse_faults
from core.formats import Layout, choose_layout, normalize_records
from core.layout import sha256_file
from core.training_file import read_records
from train.config import DataConfig, TrainConfig, resolve_path
from train.parquet import ENDINGS as PARQUET_ENDINGS
from train.parquet import read_parquet
from train.template import TrainingTemplate

IGNORED = -100
"""Label of a token that is read but not learned (torch's cross entropy leaves it out)."""
MAX_LINES_SHOWN = 10


class Example(TypedDict):
    """One row, ready to train on: token ids, and the same with IGNORED where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


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


@dataclass(slots=True)
class Encoded:
    """The examples of a file and what is to be told about them.

    Attributes:
        examples: In the order of the file.
        tokens: Of all rows together.
        trained_tokens: Those that are learned.
        longest: Tokens of the longest row before anything was cut.
        cut_lines: Lines of the rows that were longer than max_length.
    """

    examples: list[Example] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    cut_lines: list[int] = field(default_factory=list)


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
    if template is not None and not template.takes_tools:
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
    """Add a fault to each row with tools: the template has no form for them."""
    problem = f"the chat template of {template.name} has no form for tools"
    for line, row, faults in records:
        if row is not None and _uses_tools(row):
            yield line, None, [*faults, Fault(line, "messages", problem, "Remove the row or choose another model")]
        else:
            yield line, row, faults


def _uses_tools(row: dict[str, Any]) -> bool:
    messages = row["messages"] if "messages" in row else row["prompt"] + row["chosen"] + row["rejected"]
    return bool(row.get("tools")) or any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def encode_chats(
    chats: DataFile, tokenizer: Any, template: TrainingTemplate, *, max_length: int, date: str | None
) -> Encoded:
    """Render and tokenize every row and mark what is learned.

    Args:
        chats: Checked rows.
        tokenizer: The base model's.
        template: Its training template.
        max_length: Tokens after which a row is cut.
        date: What the template prints as today's date, or None where it prints none.

    Raises:
        TrainingDataError: A row has nothing to learn (left of it).
    """
    encoded = Encoded()
    faults: list[Fault] = []
    for line, row in chats.read():
        example = encode_chat(row, tokenizer, template, date)
        length = len(example["input_ids"])
        encoded.longest = max(encoded.longest, length)
        if length > max_length:
            encoded.cut_lines.append(line)
            example = {"input_ids": example["input_ids"][:max_length], "labels": example["labels"][:max_length]}
        # The first token is never predicted, so it does not count as learned.
        trained = sum(label != IGNORED for label in example["labels"][1:])
        if not trained:
            problem = f"none of the assistant's tokens lie within the first {max_length} of {length} tokens"
            faults.append(Fault(line, "messages", problem, "Raise trainer.max_length or shorten the row"))
        encoded.examples.append(example)
        encoded.tokens += len(example["input_ids"])
        encoded.trained_tokens += trained
    if faults:
        raise TrainingDataError(describe_faults(chats.path, faults), param="trainer.max_length")
    return encoded


def encode_chat(row: dict[str, Any], tokenizer: Any, template: TrainingTemplate, date: str | None) -> Example:
    """Render and tokenize one row.

    Returns:
        Its token ids, and labels that are IGNORED everywhere but on the assistant's turns (of weight 1).
    """
    rendered = tokenizer.apply_chat_template(
        [_plain_message(message) for message in row["messages"]],
        tools=row.get("tools") or None,
        chat_template=template.text,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **({"date_string": date} if date is not None else {}),
    )
    ids = list(rendered["input_ids"])
    mask = rendered["assistant_masks"]
    labels = [token if is_trained else IGNORED for token, is_trained in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: no null keys, and tool arguments parsed (OpenAI sends them as text)."""
    plain = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in plain:
        plain["tool_calls"] = [_plain_call(call) for call in plain["tool_calls"]]
        if not plain["tool_calls"]:
            del plain["tool_calls"]
    return plain


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


def encode_all(
    train: DataFile, valid: DataFile | None, tokenizer: Any, template: TrainingTemplate, config: TrainConfig
) -> tuple[Encoded, Encoded | None]:
    """Encode the training chats and the held-out ones, where there are any."""
    date = template.date(config.data.template_date)
    limit = config.trainer.max_length
    learned = encode_chats(train, tokenizer, template, max_length=limit, date=date)
    return learned, encode_chats(valid, tokenizer, template, max_length=limit, date=date) if valid else None


def summarize_all(
    train: DataFile, learned: Encoded, valid: DataFile | None, held_out: Encoded | None
) -> dict[str, Any]:
    """Return what the adapter's manifest says about the data."""
    return {
        "train": summarize(train, learned),
        "valid": summarize(valid, held_out) if valid and held_out else None,
    }


def summarize(chats: DataFile, encoded: Encoded) -> dict[str, Any]:
    """Return what the adapter's manifest says about a file of chats."""
    return {
        "path": chats.path.name,
        "sha256": chats.sha256,
        "format": chats.layout.format.value,
        "rows": chats.rows,
        "tokens": encoded.tokens,
        "trained_tokens": encoded.trained_tokens,
        "longest": encoded.longest,
        "cut_rows": len(encoded.cut_lines),
    }


def describe(chats: DataFile, encoded: Encoded) -> str:
    """Return one line for people about a file of chats; it names the rows that were cut."""
    line = (
        f"{chats.path}: {chats.rows:,} rows, format: {chats.layout.describe()}, {encoded.tokens:,} tokens, "
        f"{encoded.trained_tokens / max(1, encoded.tokens):.0%} of them learned, longest {encoded.longest:,}"
    )
    if encoded.cut_lines:
        shown = ", ".join(map(str, encoded.cut_lines[:MAX_LINES_SHOWN]))
        more = (
            f" and {len(encoded.cut_lines) - MAX_LINES_SHOWN} more" if len(encoded.cut_lines) > MAX_LINES_SHOWN else ""
        )
        line += f"; {len(encoded.cut_lines)} rows lost their end at trainer.max_length (lines {shown}{more})"
    return line
