"""core.chat: good chats load, and every fault of a bad file is named with its line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.chat import MAX_LINE_BYTES, check_chat, load_chats, read_rows
from core.errors import NotFound, TrainingDataError

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def chat(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_good_chats_load_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD))
    assert load_chats(path) == [GOOD, GOOD]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="wanted a training file"):
        load_chats(tmp_path / "none.jsonl")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n \n")
    with pytest.raises(TrainingDataError, match="wanted at least one chat"):
        load_chats(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "byte order mark"),
        (b'{"messages": \x00}', "NUL byte"),
        (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
        (b"not json", "not JSON at column 1"),
        (b'{"messages": [], "messages": []}', "the key 'messages' twice"),
        (b'{"messages": NaN}', "the number NaN"),
        (b"[" * 100_000, "nested too deeply"),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"', "a line of more than 4 MiB"),
    ],
    ids=["bom", "nul", "utf8", "json", "duplicate", "nan", "deep", "long"],
)
def test_broken_lines_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError) as caught:
        load_chats(path)
    assert expected in caught.value.message
    assert "line 1" in caught.value.message
    assert caught.value.param == "training_file"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ([], "messages"),
        ({"text": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        (chat(("human", "q"), ("assistant", "a")), "messages[0].role"),
        (chat(("user", ""), ("assistant", "a")), "messages[0].content"),
        (chat(("user", None), ("assistant", "a")), "messages[0].content"),
        (chat(("user", "q")), "messages[0].role"),
        (chat(("assistant", "a")), "messages[0].role"),
        (chat(("user", "q"), ("user", "q"), ("assistant", "a")), "messages[1].role"),
        (
            chat(("user", "q"), ("assistant", "a"), ("system", "s"), ("user", "q"), ("assistant", "a")),
            "messages[2].role",
        ),
        (chat(("tool", "t"), ("assistant", "a")), "messages[0].role"),
        (chat(("user", "q"), ("assistant", "a"), ("assistant", "b")), "messages[2].role"),
        ({"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 0}]}, "messages"),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": True}]},
            "messages[1].weight",
        ),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 2}]},
            "messages[1].weight",
        ),
    ],
)
def test_each_rule_names_its_field(row: Any, field: str) -> None:
    assert [fault.field for fault in check_chat(7, row)] == [field]


def test_tool_calls_may_stand_without_content() -> None:
    row = chat(("user", "q"), ("assistant", None), ("tool", "t"), ("assistant", "a"))
    row["messages"][1]["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert check_chat(1, row) == []


def test_all_faults_come_at_once_and_quickly(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    bad = chat(("user", ""), ("assistant", ""))
    path.write_text("".join(json.dumps(bad if number % 2 else GOOD) + "\n" for number in range(200)))
    start = time.monotonic()
    with pytest.raises(TrainingDataError) as caught:
        load_chats(path)
    assert "200 faults" in caught.value.message
    assert "line 2, messages[0].content" in caught.value.message
    assert "and 180 more" in caught.value.message
    assert time.monotonic() - start < 5


def test_rows_stream_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\nnonsense\n" + json.dumps(GOOD))
    assert [(line, row is not None, len(faults)) for line, row, faults in read_rows(path)] == [
        (1, True, 0),
        (3, False, 1),
        (4, True, 0),
    ]
