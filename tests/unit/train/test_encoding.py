"""Chats become token ids and labels: exactly the assistant's turns are learned, the stop token among them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies

from core.errors import TrainingDataError
from tests.fakes.byte_tokenizer import make_byte_tokenizer
from tests.unit.train.test_data import write_rows
from tests.unit.train.test_template import chats
from train.config import DataConfig, TrainConfig, TrainerConfig
from train.data import check_data
from train.encoding import (
    BATCH_ROWS,
    Encoded,
    describe,
    encode_all,
    encode_chat,
    encode_chats,
    encode_rows,
    summarize,
)
from train.template import LLAMA_3_2, SMOLLM2, TrainingTemplate
from train.tokens import IGNORED

TOKENIZER = make_byte_tokenizer()
DATE = "26 Jul 2024"
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def learned_text(row: dict[str, Any], template: TrainingTemplate) -> str:
    example = encode_chat(row, TOKENIZER, template, template.date(DATE))
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, IGNORED)
    return str(TOKENIZER.decode([label for label in example["labels"] if label != IGNORED]))


@given(chats())
def test_chatml_learns_the_answers_and_their_stop_tokens(messages: list[dict[str, Any]]) -> None:
    answers = [m["content"] for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
    assert learned_text({"messages": messages}, SMOLLM2) == "".join(answer + "<|im_end|>" for answer in answers)


@given(chats())
def test_llama_learns_the_answers_and_their_stop_tokens(messages: list[dict[str, Any]]) -> None:
    answers = [m["content"] for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
    assert learned_text({"messages": messages}, LLAMA_3_2) == "".join(a.strip() + "<|eot_id|>" for a in answers)


def test_llama_learns_a_tool_call_with_arguments_as_openai_sends_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert learned_text(row, LLAMA_3_2) == '{"name": "weather", "parameters": {"town": "Ulm"}}<|eot_id|>'


def test_the_date_is_the_one_given() -> None:
    example = encode_chat(GOOD, TOKENIZER, LLAMA_3_2, "01 Jan 2031")
    assert "Today Date: 01 Jan 2031" in TOKENIZER.decode(example["input_ids"])


def encode(path: Path, max_length: int, *rows: dict[str, Any]) -> Encoded:
    file = check_data(write_rows(path / "chats.jsonl", *rows), DataConfig(), SMOLLM2)
    return encode_chats(file, TOKENIZER, SMOLLM2, max_length=max_length, date=None, path=path / "tokens.arrow")


def test_long_rows_are_cut_and_counted(tmp_path: Path) -> None:
    whole = encode(tmp_path, 10_000, GOOD)
    longer = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "Hello" * 50}]}
    cut = encode(tmp_path, whole.longest, GOOD, longer)
    assert cut.cut_lines == [2]
    assert cut.longest > whole.longest
    assert [len(example["input_ids"]) for example in cut.examples] == [whole.longest] * 2
    file = check_data(tmp_path / "chats.jsonl", DataConfig(), SMOLLM2)
    assert "1 rows lost their end at trainer.max_length (lines 2)" in describe(file, cut)
    assert summarize(file, cut)["cut_rows"] == 1


def test_a_row_with_nothing_left_to_learn_is_refused_with_its_line(tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "?" * 200}, GOOD["messages"][1]]}
    with pytest.raises(TrainingDataError, match=r"1 fault(?s:.*)line 2"):
        encode(tmp_path, 150, GOOD, question)


def test_tokens_are_counted(tmp_path: Path) -> None:
    encoded = encode(tmp_path, 10_000, GOOD)
    assert encoded.trained_tokens == len("Hello") + 1
    assert encoded.tokens == len(encoded.examples[0]["input_ids"])


def render_by_transformers(row: dict[str, Any], template: TrainingTemplate) -> tuple[list[int], list[int]]:
    """Return a row's ids and labels as the tokenizer itself makes them, one row at a time."""
    date = template.date(DATE)
    tokenizer: Any = TOKENIZER
    rendered = tokenizer.apply_chat_template(
        row["messages"],
        tools=row.get("tools"),
        chat_template=template.text,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **({"date_string": date} if date else {}),
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    return ids, [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("template", [SMOLLM2, LLAMA_3_2], ids=lambda template: template.file)
@given(rows=strategies.lists(chats(), min_size=1, max_size=4))
def test_many_rows_at_once_give_what_transformers_gives_one_by_one(
    template: TrainingTemplate, rows: list[list[dict[str, Any]]]
) -> None:
    encoded = encode_rows([{"messages": messages} for messages in rows], TOKENIZER, template, template.date(DATE))
    for messages, (ids, labels) in zip(rows, encoded, strict=True):
        assert (ids.tolist(), labels.tolist()) == render_by_transformers({"messages": messages}, template)
        assert ids.dtype == labels.dtype == np.int32


def test_the_tokenizers_threads_rest_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    encode_rows([GOOD], TOKENIZER, SMOLLM2, None)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_more_rows_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    rows = [{"messages": [GOOD["messages"][0], {"role": "assistant", "content": str(row)}]} for row in range(700)]
    assert len(rows) > BATCH_ROWS
    encoded = encode(tmp_path, 10_000, *rows)
    assert [example["input_ids"] for example in encoded.examples] == [
        encode_chat(row, TOKENIZER, SMOLLM2, None)["input_ids"] for row in rows
    ]


def test_other_processes_take_what_the_first_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = check_data(write_rows(tmp_path / "chats.jsonl", GOOD, GOOD), DataConfig(), SMOLLM2)
    config = TrainConfig(trainer=TrainerConfig(max_length=104))
    first, _ = encode_all(file, None, TOKENIZER, SMOLLM2, config, tmp_path)
    written = (tmp_path / "train.arrow").stat().st_mtime_ns
    monkeypatch.setenv("LOCAL_RANK", "1")
    second, valid = encode_all(file, None, TOKENIZER, SMOLLM2, config, tmp_path)
    assert (tmp_path / "train.arrow").stat().st_mtime_ns == written
    assert valid is None
    assert (second.tokens, second.cut_lines, second.longest) == (first.tokens, first.cut_lines, first.longest)
    assert list(second.examples) == list(first.examples)
