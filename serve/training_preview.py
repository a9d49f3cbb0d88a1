"""What one uploaded file of training data holds, found in a process of its own, so that the gateway never parses it.

    python -m serve.training_preview PATH NAME [MODEL_FOLDER]

prints one JSON object: rows, format, the first faults with their lines, the lengths of the rows in the model's tokens,
and one row as the model reads it. Without a model folder the lengths are in characters. Does not know jobs.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.chat import plain_message
from core.errors import LoamError
from core.faults import NOTHING_FOUND
from core.formats import choose_layout
from core.manifest import read_chat_template
from core.offline import switch_offline
from core.training_file import read_records, read_rows
from serve.file_check import ask_module

MAX_FAULTS = 200
MAX_MEASURED = 20_000
"""Rows whose lengths are taken; a larger file's are those of its head."""
BARS = 24
TIMEOUT_S = 300.0
MAX_SAMPLE_CHARS = 20_000

Render = Callable[[list[dict[str, Any]], Any], str]
Count = Callable[[str], int]


def preview_file(path: Path, name: str, model: Path | None) -> dict[str, Any]:
    """Return what a file holds.

    Args:
        path: Where its bytes lie, JSON lines.
        name: What its owner calls it.
        model: Folder of the base model; None: lengths in characters, and no rendered sample.

    Raises:
        LoamError: The model folder cannot be used.
    """
    layout = choose_layout(read_records(path, "file_id"))
    render, count = (_join_messages, len) if model is None else open_tokenizer(model)
    faults: list[dict[str, Any]] = []
    lengths: list[int] = []
    rows = found = 0
    sample: dict[str, Any] | None = None
    for line, row, problems in read_rows(path, layout, "file_id"):
        found += len(problems)
        faults += [asdict(fault) for fault in problems[: MAX_FAULTS - len(faults)]]
        if row is None or problems:
            continue
        rows += 1
        if rows <= MAX_MEASURED:
            text = render(*_read_chat(row))
            lengths.append(count(text))
            sample = sample or {"line": line, "row": row, "rendered": text[:MAX_SAMPLE_CHARS]}
    if not rows and not found:
        faults, found = [asdict(NOTHING_FOUND)], 1
    return {
        "filename": name,
        "format": layout.format.value,
        "rows": rows,
        "fault_count": found,
        "faults": faults,
        "lengths": {"unit": "characters" if model is None else "tokens", **describe_lengths(lengths)},
        "sample": sample,
    }


def _read_chat(row: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """Return a row's messages and tools; of a pair those of the better answer."""
    return row.get("messages") or [*row["prompt"], *row["chosen"]], row.get("tools")


def _join_messages(messages: list[dict[str, Any]], _tools: Any) -> str:
    return "\n\n".join(f"{one['role']}: {one.get('content') or ''}" for one in messages)


def open_tokenizer(folder: Path) -> tuple[Render, Count]:
    """Return what writes a chat as the model reads it, and what counts a text's tokens."""
    from transformers import PreTrainedTokenizerFast

    special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {key: special[key] for key in ("bos_token", "eos_token") if isinstance(special.get(key), str)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=read_chat_template(folder), **names
    )

    def render(messages: list[dict[str, Any]], tools: Any) -> str:
        plain = [plain_message(message) for message in messages]
        return str(tokenizer.apply_chat_template(plain, tools=tools or None, tokenize=False))

    return render, lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Return count, sum, mean and largest, and a histogram of equal bars: `bars[i]` rows of `i * width` and more."""
    if not lengths:
        return {"measured": 0, "total": 0, "mean": 0.0, "max": 0, "width": 1, "bars": []}
    width = max(1, -(-(max(lengths) + 1) // BARS))
    bars = [0] * (max(lengths) // width + 1)
    for length in lengths:
        bars[length // width] += 1
    total = sum(lengths)
    mean = round(total / len(lengths), 1)
    return {
        "measured": len(lengths), "total": total, "mean": mean, "max": max(lengths), "width": width, "bars": bars
    }  # fmt: skip


async def preview_upload(path: Path, name: str, model: Path | None) -> dict[str, Any]:
    """Run this module on a file and return what it found. Arguments are those of `preview_file`.

    Raises:
        TrainingDataError: The file cannot be read at all.
    """
    arguments = [str(path), name, *([str(model)] if model else [])]
    return await ask_module("serve.training_preview", arguments, TIMEOUT_S, name, "file_id")


def main(path: str, name: str, model: str | None = None) -> None:
    """Preview and print."""
    switch_offline()
    try:
        found = preview_file(Path(path), name, Path(model) if model else None)
    except LoamError as error:
        found = error.to_openai()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
