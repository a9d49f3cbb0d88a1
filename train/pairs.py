"""Preference pairs for DPO: a better and a worse answer to one question, as token ids that say what is scored.

Both answers are rendered by the training template, whole, as if each were a chat. Scored are the answer's own tokens,
the stop token among them, never an earlier turn of the assistant. Does not know the loss.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.faults import Fault, Record, refuse_faults
from train.data import DataFile
from train.encoding import Encoded, count_learned, encode_rows, show_progress
from train.template import TrainingTemplate
from train.tokens import IGNORED, Example, TokenFile, TokenWriter

ANSWERS = ("chosen", "rejected")


def encode_pairs(
    pairs: DataFile, tokenizer: Any, template: TrainingTemplate, *, max_length: int, date: str | None, path: Path
) -> Encoded:
    """Render and tokenize both answers of every pair, mark what is scored, and write both to disk.

    Args:
        pairs: A checked file of rows {"prompt", "chosen", "rejected"} of messages each.
        tokenizer: The base model's.
        template: Its training template.
        max_length: Tokens after which prompt and answer together are cut.
        date: What the template prints as today's date, or None where it prints none.
        path: Where the tokens go; its folder must exist.

    Returns:
        The examples in turns: chosen, rejected, chosen, rejected, …

    Raises:
        TrainingDataError: Of an answer nothing is left to score.
    """
    encoded = Encoded()
    records = _encode_records(show_progress(pairs.read(), pairs), tokenizer, template, max_length, date)
    with TokenWriter(path) as writer:
        for line, both in refuse_faults(pairs.path, records, "trainer.max_length"):
            lengths = [len(ids) for ids, _ in both.values()]
            encoded.longest = max(encoded.longest, *lengths)
            encoded.cut_lines += [line] * (max(lengths) > max_length)
            for ids, labels in both.values():
                encoded.tokens += len(ids[:max_length])
                encoded.trained_tokens += count_learned(labels, max_length)
                writer.add(ids[:max_length], labels[:max_length])
    encoded.examples = TokenFile(path)
    return encoded


def _encode_records(
    rows: Iterator[tuple[int, dict[str, Any]]],
    tokenizer: Any,
    template: TrainingTemplate,
    max_length: int,
    date: str | None,
) -> Iterator[Record]:
    """Yield each pair as (input_ids, labels) of its two answers, not yet cut."""
    for line, row in rows:
        chats = [as_chat(row, answer) for answer in ANSWERS]
        both = dict(zip(ANSWERS, encode_rows(chats, tokenizer, template, date), strict=True))
        faults = []
        for answer, (ids, labels) in both.items():
            if not count_learned(labels, max_length):
                problem = f"none of its tokens lie within the first {max_length} of {len(ids)} tokens"
                faults.append(Fault(line, answer, problem, "Raise trainer.max_length or shorten the row"))
        yield line, both, faults


def as_chat(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return a pair's prompt with one of its answers as a chat in which only that answer is learned.

    Args:
        row: {"prompt", "chosen", "rejected"}, each a list of messages, and perhaps "tools".
        answer: `chosen` or `rejected`.
    """
    told = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in row["prompt"]]
    answered = [{key: value for key, value in message.items() if key != "weight"} for message in row[answer]]
    return {**row, "messages": told + answered}


def pair_up(examples: Sequence[Example]) -> dict[str, list[list[int]]]:
    """Return examples that come in turns as columns, one row a pair."""
    columns: dict[str, list[list[int]]] = {}
    for offset, answer in enumerate(ANSWERS):
        part = [examples[at] for at in range(offset, len(examples), 2)]
        columns[f"{answer}_ids"] = [example["input_ids"] for example in part]
        columns[f"{answer}_labels"] = [example["labels"] for example in part]
    return columns


class PairCollator:
    """Pads pairs to a batch as TRL's DPO wants it: every chosen answer, then every rejected one."""

    def __init__(self, pad_token_id: int) -> None:
        """Keep what to pad with."""
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `completion_mask`, each (2 * rows, T) int64."""
        ids = [row[f"{answer}_ids"] for answer in ANSWERS for row in rows]
        labels = [row[f"{answer}_labels"] for answer in ANSWERS for row in rows]
        shape = (len(ids), max(map(len, ids)))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask, completion_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for index, (tokens, wanted) in enumerate(zip(ids, labels, strict=True)):
            input_ids[index, : len(tokens)] = torch.tensor(tokens)
            attention_mask[index, : len(tokens)] = 1
            completion_mask[index, : len(tokens)] = (torch.tensor(wanted) != IGNORED).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
