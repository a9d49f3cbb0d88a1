"""From rows to token ids and labels, on disk, with what was found on the way.

Renders rows with a training template and marks what is learned: the assistant's turns. Works a batch at a time, on all
cores, and keeps each row's line number, so that whatever is wrong with a row is said with its line. Does not know
batches of training.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from core.chat import plain_message
from core.faults import Fault, Record, refuse_faults
from core.layout import write_json
from train.config import TrainConfig
from train.data import DataFile
from train.scratch import is_first_here, wait_for
from train.template import TrainingTemplate
from train.tokens import IGNORED, Example, TokenFile, TokenWriter, measure_rows

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_LINES_SHOWN = 10
BATCH_ROWS = 512
BATCH_CHARACTERS = 2**21
PROGRESS_EVERY_S = 10
PARALLELISM = "TOKENIZERS_PARALLELISM"
NOTED = ("tokens", "trained_tokens", "longest", "cut_lines")
"""Figures of Encoded that the other processes are told."""


@dataclass(slots=True)
class Encoded:
    """The examples of a file and what is to be told about them.

    Attributes:
        examples: In the order of the file; on disk, for whoever asks for one.
        tokens: Of all rows together.
        trained_tokens: Those that are learned.
        longest: Tokens of the longest row before anything was cut.
        cut_lines: Lines of the rows that were longer than max_length.
    """

    examples: Sequence[Example] = ()
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    cut_lines: list[int] = field(default_factory=list)


def encode_chats(
    chats: DataFile, tokenizer: Any, template: TrainingTemplate, *, max_length: int, date: str | None, path: Path
) -> Encoded:
    """Render and tokenize every row, mark what is learned, and write both to disk.

    Args:
        chats: A checked file.
        tokenizer: The base model's.
        template: Its training template.
        max_length: Tokens after which a row is cut.
        date: What the template prints as today's date, or None where it prints none.
        path: Where the tokens go; its folder must exist.

    Raises:
        TrainingDataError: A row has nothing to learn (left of it).
    """
    encoded = Encoded()
    records = _encode_records(show_progress(chats.read(), chats), tokenizer, template, max_length, date)
    with TokenWriter(path) as writer:
        for line, row in refuse_faults(chats.path, records, "trainer.max_length"):
            encoded.longest = max(encoded.longest, row["length"])
            if row["length"] > max_length:
                encoded.cut_lines.append(line)
            encoded.tokens += len(row["input_ids"])
            encoded.trained_tokens += row["trained"]
            writer.add(row["input_ids"], row["labels"])
    encoded.examples = TokenFile(path)
    return encoded


def show_progress(rows: Iterator[T], file: DataFile) -> Iterator[T]:
    """Yield a file's rows; say now and then how many have passed, on a terminal by a bar."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(rows, file.path.name, total=file.rows, console=Console(stderr=True), transient=True)
        return
    said = time.monotonic()
    for count, row in enumerate(rows):
        if time.monotonic() - said > PROGRESS_EVERY_S:
            said = time.monotonic()
            logger.info("%s: %s of %s rows read", file.path.name, f"{count:,}", f"{file.rows:,}")
        yield row


def _encode_records(
    rows: Iterator[tuple[int, dict[str, Any]]],
    tokenizer: Any,
    template: TrainingTemplate,
    max_length: int,
    date: str | None,
) -> Iterator[Record]:
    """Yield each row as its ids and labels, cut to max_length, with its length before and how much is learned."""
    for batch in _batch_rows(rows):
        examples = encode_rows([row for _, row in batch], tokenizer, template, date)
        for (line, _), (ids, labels) in zip(batch, examples, strict=True):
            trained = count_learned(labels, max_length)
            faults = []
            if not trained:
                problem = f"none of the assistant's tokens lie within the first {max_length} of {len(ids)} tokens"
                faults = [Fault(line, "messages", problem, "Raise trainer.max_length or shorten the row")]
            cut = {"input_ids": ids[:max_length], "labels": labels[:max_length]}
            yield line, {**cut, "length": len(ids), "trained": trained}, faults


def count_learned(labels: np.ndarray, max_length: int) -> int:
    """Return how many of a row's first tokens are learned; the very first is never predicted, so it does not count."""
    return int((labels[1:max_length] != IGNORED).sum())


def measure_lengths(encoded: Encoded) -> np.ndarray:
    """Return the tokens of each example, as they are trained on; rows on disk are not read.

    Returns:
        (rows,) int64, in the order of the file.
    """
    if isinstance(encoded.examples, TokenFile):
        return measure_rows(encoded.examples.dataset)
    return np.fromiter((len(example["input_ids"]) for example in encoded.examples), np.int64)


def _batch_rows(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield rows in lists that the tokenizer can take at once: bounded by their number and by their text."""
    batch, characters = [], 0
    for line, row in rows:
        batch.append((line, row))
        characters += sum(len(message.get("content") or "") for message in row["messages"])
        if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_chat(row: dict[str, Any], tokenizer: Any, template: TrainingTemplate, date: str | None) -> Example:
    """Render and tokenize one row.

    Returns:
        Its token ids, and labels that are IGNORED everywhere but on the assistant's turns (of weight 1).
    """
    ((ids, labels),) = encode_rows([row], tokenizer, template, date)
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def encode_rows(
    rows: list[dict[str, Any]], tokenizer: Any, template: TrainingTemplate, date: str | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Render and tokenize many rows at once, on all cores; the same ids as row by row.

    Args:
        rows: {"messages", "tools"?} each.
        tokenizer: A fast one.
        template: The training template.
        date: What it prints as today's date, or None where it prints none.

    Returns:
        Of each row (input_ids, labels), both (T,) int32; labels are IGNORED but on the assistant's turns (of weight 1).
    """
    printed: dict[str, Any] = {**tokenizer.special_tokens_map, **({"date_string": date} if date is not None else {})}
    texts: list[str] = []
    spans: list[list[tuple[int, int]]] = []
    for row in rows:
        rendered: Any = render_jinja_template(
            [[plain_message(message) for message in row["messages"]]],
            tools=row.get("tools") or None,
            chat_template=template.text,
            return_assistant_tokens_mask=True,
            **printed,
        )
        texts += rendered[0]
        spans += rendered[1]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    with _use_all_cores():
        encodings = backend.encode_batch(texts, add_special_tokens=False)
    return [_mark_learned(encoding, found) for encoding, found in zip(encodings, spans, strict=True)]


@contextmanager
def _use_all_cores() -> Iterator[None]:
    """Let the tokenizer's threads work; the offline switch stills them, because they and a fork do not go together."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[PARALLELISM] = before or "false"


def _mark_learned(encoding: Any, spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a rendered row's ids, and labels on the tokens that lie in one of the spans of characters.

    A span from which nothing is left (an empty answer) marks nothing; a token that a span ends within is learned whole.
    """
    ids = np.array(encoding.ids, dtype=np.int32)
    labels = np.full_like(ids, IGNORED)
    for start, end in spans:
        first = encoding.char_to_token(start) if end > start else None
        last = encoding.char_to_token(end - 1)
        if first is not None and last is not None:
            labels[first : last + 1] = ids[first : last + 1]
    return ids, labels


def encode_all(
    train: DataFile,
    valid: DataFile | None,
    tokenizer: Any,
    template: TrainingTemplate,
    config: TrainConfig,
    folder: Path,
) -> tuple[Encoded, Encoded | None]:
    """Encode the training rows and the held-out ones, where there are any.

    Args:
        train: The training rows.
        valid: The held-out ones, or None.
        tokenizer: The base model's.
        template: Its training template.
        config: The run's configuration.
        folder: Where the tokens go; must exist while they are used.
    """
    learned = _encode_once(train, tokenizer, template, config, folder / "train.arrow")
    return learned, _encode_once(valid, tokenizer, template, config, folder / "valid.arrow") if valid else None


def _encode_once(
    file: DataFile, tokenizer: Any, template: TrainingTemplate, config: TrainConfig, path: Path
) -> Encoded:
    """Encode a file in the first process of this machine; the others take what it wrote."""
    notes = path.with_suffix(".json")
    if not is_first_here():
        wait_for(notes)
        return Encoded(TokenFile(path), **json.loads(notes.read_text(encoding="utf-8")))
    date = template.date(config.data.template_date)
    how: dict[str, Any] = {"max_length": config.trainer.max_length, "date": date, "path": path}
    if config.method.is_dpo:
        from train.pairs import encode_pairs  # builds on this module

        encoded = encode_pairs(file, tokenizer, template, **how)
    else:
        encoded = encode_chats(file, tokenizer, template, **how)
    write_json(notes, {name: getattr(encoded, name) for name in NOTED})
    return encoded


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
