"""From chat files to token ids and labels, with what was found on the way.

Reads rows through core.chat (which checks their form), renders them with a training template, and marks what is
learned: the assistant's turns. Keeps each row's line number, so that whatever is wrong with a row is said with its
line. Does not know about batches.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from core.chat import Fault, describe_faults, read_rows
from core.errors import TrainingDataError
from core.layout import sha256_file
from train.config import TrainConfig
from train.template import TrainingTemplate

IGNORED = -100
"""Label of a token that is read but not learned (torch's cross entropy leaves it out)."""
MAX_LINES_SHOWN = 10


class Example(TypedDict):
    """One row, ready to train on: token ids, and the same with IGNORED where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class ChatFile:
    """A file of chats that passed core's checks.

    Attributes:
        path: Where it was read.
        sha256: Of its bytes.
        lines: Line number of each row.
        rows: The parsed rows.
    """

    path: Path
    sha256: str
    lines: list[int]
    rows: list[dict[str, Any]]


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


def read_chats(path: Path, template: TrainingTemplate | None) -> ChatFile:
    """Read a chat file whole, or refuse it with every fault named.

    Args:
        path: JSONL in OpenAI's chat format.
        template: The training template, where it is known: rows that it cannot render are faults too.

    Raises:
        NotFound: There is no such file.
        TrainingDataError: One or more rows are faulty.
    """
    faults: list[Fault] = []
    lines, rows = [], []
    for line, row, row_faults in read_rows(path):
        if row is not None and not row_faults and template is not None and not template.takes_tools:
            row_faults = _find_tool_faults(line, row, template)  # noqa: PLW2901
        faults += row_faults
        if row is not None and not row_faults:
            lines.append(line)
            rows.append(row)
    if not rows and not faults:
        faults.append(Fault(0, "", "wanted at least one chat, found none", "Put one JSON object on each line"))
    if faults:
        raise TrainingDataError(describe_faults(path, faults), param="data.train")
    return ChatFile(path, sha256_file(path), lines, rows)


def _find_tool_faults(line: int, row: dict[str, Any], template: TrainingTemplate) -> list[Fault]:
    uses_tools = row.get("tools") or any(
        message.get("tool_calls") or message["role"] == "tool" for message in row["messages"]
    )
    problem = f"the chat template of {template.name} has no form for tools"
    return [Fault(line, "messages", problem, "Remove the row or choose another model")] if uses_tools else []


def encode_chats(
    chats: ChatFile, tokenizer: Any, template: TrainingTemplate, *, max_length: int, date: str | None
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
    for line, row in zip(chats.lines, chats.rows, strict=True):
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
    train: ChatFile, valid: ChatFile | None, tokenizer: Any, template: TrainingTemplate, config: TrainConfig
) -> tuple[Encoded, Encoded | None]:
    """Encode the training chats and the held-out ones, where there are any."""
    date = template.date(config.data.template_date)
    limit = config.trainer.max_length
    learned = encode_chats(train, tokenizer, template, max_length=limit, date=date)
    return learned, encode_chats(valid, tokenizer, template, max_length=limit, date=date) if valid else None


def summarize_all(
    train: ChatFile, learned: Encoded, valid: ChatFile | None, held_out: Encoded | None
) -> dict[str, Any]:
    """Return what the adapter's manifest says about the data."""
    return {
        "train": summarize(train, learned),
        "valid": summarize(valid, held_out) if valid and held_out else None,
    }


def summarize(chats: ChatFile, encoded: Encoded) -> dict[str, Any]:
    """Return what the adapter's manifest says about a file of chats."""
    return {
        "path": chats.path.name,
        "sha256": chats.sha256,
        "rows": len(chats.rows),
        "tokens": encoded.tokens,
        "trained_tokens": encoded.trained_tokens,
        "longest": encoded.longest,
        "cut_rows": len(encoded.cut_lines),
    }


def describe(chats: ChatFile, encoded: Encoded) -> str:
    """Return one line for people about a file of chats; it names the rows that were cut."""
    line = (
        f"{chats.path}: {len(chats.rows):,} chats, {encoded.tokens:,} tokens, "
        f"{encoded.trained_tokens / max(1, encoded.tokens):.0%} of them learned, longest {encoded.longest:,}"
    )
    if encoded.cut_lines:
        shown = ", ".join(map(str, encoded.cut_lines[:MAX_LINES_SHOWN]))
        more = (
            f" and {len(encoded.cut_lines) - MAX_LINES_SHOWN} more" if len(encoded.cut_lines) > MAX_LINES_SHOWN else ""
        )
        line += f"; {len(encoded.cut_lines)} rows lost their end at trainer.max_length (lines {shown}{more})"
    return line
