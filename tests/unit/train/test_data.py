"""Files of rows are checked whole, and read again one row at a time."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from core.errors import InvalidFile, NotFound, TrainingDataError
from train.config import DataConfig
from train.data import check_data
from train.template import LLAMA_3_2, QWEN_2_5, SMOLLM2

GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n", encoding="utf-8")
    file = check_data(path, DataConfig(), SMOLLM2)
    assert file.rows == 2
    assert list(file.read()) == [(1, GOOD), (3, GOOD)]


def test_a_file_that_changes_after_its_check_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", GOOD)
    file = check_data(path, DataConfig(), SMOLLM2)
    write_rows(path, GOOD, GOOD)
    with pytest.raises(InvalidFile, match="changed after it was checked"):
        list(file.read())


def test_parquet_is_read_by_the_same_check(tmp_path: Path) -> None:
    path = tmp_path / "chats.parquet"
    rows = [{"question": "Hi", "answer": 7}, {"question": None, "answer": 8}, {"question": "a\x00", "answer": 9}]
    write_table(pa.Table.from_pylist(rows[:1]), path)
    options = DataConfig(prompt_column="question", completion_column="answer")
    file = check_data(path, options, SMOLLM2)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "7"}]
    assert list(file.read()) == [(1, {"messages": messages})]
    write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(TrainingDataError, match=r"2 faults(?s:.*)line 2, question(?s:.*)line 3, question: found a NUL"):
        check_data(path, options, SMOLLM2)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_damaged_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chats.parquet"
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match="wanted a Parquet file"):
        check_data(path, DataConfig(), SMOLLM2)


def test_the_system_file_speaks_for_rows_without_a_system_message(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    own = {"messages": [{"role": "system", "content": "Mine."}, *GOOD["messages"]]}
    path = write_rows(tmp_path / "chats.jsonl", GOOD, own)
    file = check_data(path, DataConfig(system_file=str(tmp_path / "system.txt")), SMOLLM2)
    assert [row["messages"][0] for _, row in file.read()] == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Mine."},
    ]


@pytest.mark.parametrize(
    ("content", "kind", "problem"),
    [(None, NotFound, "found none"), (b"\xff", InvalidFile, "not UTF-8"), (b" \n", InvalidFile, "empty")],
)
def test_a_system_file_must_hold_text(
    tmp_path: Path, content: bytes | None, kind: type[Exception], problem: str
) -> None:
    if content is not None:
        (tmp_path / "system.txt").write_bytes(content)
    path = write_rows(tmp_path / "chats.jsonl", GOOD)
    with pytest.raises(kind, match=problem):
        check_data(path, DataConfig(system_file=str(tmp_path / "system.txt")), SMOLLM2)


def test_every_faulty_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": []}\nnot json\n' + json.dumps(GOOD) + '\n{"messages": 3}\n', encoding="utf-8")
    with pytest.raises(TrainingDataError, match=r"3 faults(?s:.*)line 1(?s:.*)line 2(?s:.*)line 4"):
        check_data(path, DataConfig(), SMOLLM2)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="at least one row"):
        check_data(write_rows(tmp_path / "chats.jsonl"), DataConfig(), SMOLLM2)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        check_data(tmp_path / "chats.jsonl", DataConfig(), SMOLLM2)


def test_tools_are_refused_where_the_template_has_no_form_for_them(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", {**GOOD, "tools": [{"type": "function", "function": {"name": "f"}}]})
    with pytest.raises(TrainingDataError, match=r"line 1(?s:.*)no form for tools"):
        check_data(path, DataConfig(), SMOLLM2)
    assert check_data(path, DataConfig(), LLAMA_3_2).rows == 1


def test_several_calls_in_a_message_are_refused_where_the_template_has_no_form_for_them(tmp_path: Path) -> None:
    calls = [{"id": town, "type": "function", "function": {"name": "f", "arguments": "{}"}} for town in ("a", "b")]
    asked = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": None, "tool_calls": calls}]}
    path = write_rows(tmp_path / "chats.jsonl", GOOD, asked)
    with pytest.raises(TrainingDataError, match=r"1 fault(?s:.*)line 2(?s:.*)several tool calls"):
        check_data(path, DataConfig(), LLAMA_3_2)
    assert check_data(path, DataConfig(), QWEN_2_5).rows == 2
