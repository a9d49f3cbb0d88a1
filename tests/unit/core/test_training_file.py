"""core.training_file: good rows load, and every fault of a bad file is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import NotFound, TrainingDataError
from core.formats import DataFormat
from core.training_file import MAX_LINE_BYTES, check_file, read_records, read_rows

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def chat(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_good_rows_load_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD))
    assert [row for _, row, _ in read_rows(path)] == [GOOD, GOOD]
    assert check_file(path).rows == 2


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="wanted a training file"):
        check_file(tmp_path / "none.jsonl")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n \n")
    with pytest.raises(TrainingDataError, match="wanted at least one row"):
        check_file(path)


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
        (b'{"messages": 1e999}', "which is too large"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"messages": "\\ud83d"}', "half a character (\\ud83d)"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        ("\ufeff{}".encode("utf-16-le"), "found UTF-16"),
        (b"[\n  {}\n]", "found a JSON array"),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"', "a line of more than 4 MiB"),
    ],
    ids=[
        "bom",
        "nul",
        "utf8",
        "json",
        "duplicate",
        "nan",
        "deep",
        "huge",
        "digits",
        "surrogate",
        "65",
        "utf16",
        "array",
        "long",
    ],
)
def test_broken_lines_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError) as caught:
        check_file(path)
    assert expected in caught.value.message
    assert "line 1" in caught.value.message
    assert caught.value.param == "training_file"


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    bad = chat(("user", ""), ("assistant", ""))
    path.write_text("".join(json.dumps(bad if number % 2 else GOOD) + "\n" for number in range(200)))
    with pytest.raises(TrainingDataError) as caught:
        check_file(path)
    assert "200 faults" in caught.value.message
    assert "line 2, messages[0].content" in caught.value.message
    assert "and 100 more" in caught.value.message


def test_rows_stream_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\nnonsense\n" + json.dumps(GOOD))
    assert [(line, row is not None, len(faults)) for line, row, faults in read_rows(path)] == [
        (1, True, 0),
        (3, False, 1),
        (4, True, 0),
    ]


def test_a_line_that_never_ends_does_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    with path.open("wb") as file:
        file.write(b'{"messages": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}\n')
        file.write(json.dumps(GOOD).encode() + b"\nnonsense\n")
    assert [(line, row is not None, len(faults)) for line, row, faults in read_rows(path)] == [
        (1, False, 1),
        (2, True, 0),
        (3, False, 1),
    ]


def test_a_whole_emoji_spelled_as_two_halves_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(chat(("user", "\U0001f600"), ("assistant", "a"))))
    assert "\\ud83d" in path.read_text()
    [(_, row, _)] = read_rows(path)
    assert row["messages"][0]["content"] == "\U0001f600"


def test_a_checked_file_is_counted_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("a\n")
    with pytest.raises(TrainingDataError) as caught:
        check_file(path, param="data.train")
    assert caught.value.param == "data.train"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    checked = check_file(path)
    assert (checked.rows, len(checked.sha256), checked.layout.format) == (2, 64, DataFormat.chat)


def read_csv(path: Path, text: str | bytes) -> list[tuple[int, Any, list[str]]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(line, row, [fault.problem for fault in faults]) for line, row, faults in read_records(path)]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.CSV", "\t"), ("a.tsv", "\t")])
def test_csv_rows_are_numbered_by_the_line_that_they_begin_on(tmp_path: Path, name: str, delimiter: str) -> None:
    text = '\ufeffq|a\n"two\nlines"|"say ""hi"""\n\nx|y\n'.replace("|", delimiter)
    assert read_csv(tmp_path / name, text) == [
        (2, {"q": "two\nlines", "a": 'say "hi"'}, []),
        (5, {"q": "x", "a": "y"}, []),
    ]


def test_faults_of_csv_are_named_and_the_reading_goes_on(tmp_path: Path) -> None:
    rows = read_csv(tmp_path / "a.csv", b'q,a\n1,2,3\n\xff,2\n\x00,2\n"x"y,1\n1,2\n"open,2\n')
    assert [(line, faults) for line, _, faults in rows] == [
        (2, ["wanted 2 cells, found 3"]),
        (3, ["not UTF-8 at byte 0"]),
        (4, ["found a NUL byte"]),
        (5, ["not CSV (',' expected after '\"')"]),
        (6, []),
        (7, ["not CSV (unexpected end of data)"]),
    ]


def test_csv_columns_have_names_of_their_own(tmp_path: Path) -> None:
    ((line, _, faults),) = read_csv(tmp_path / "a.csv", "q,q\n1,2\n")
    assert line == 1
    assert "a name of its own" in faults[0]
