"""Promise T4: a hundred bad files are each refused with their line and param=training_file, and nothing is thrown.

The corruptions are a table, where in the file they strike comes from a seed; `LOAM_SEED` replays one.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainingDataError
from core.training_file import MAX_LINE_BYTES, check_file
from serve.file_check import check_rows
from tests.rules.checkout import REPO

SEED = int(os.environ.get("LOAM_SEED", "20261125"))
REPEATS = 4
HUGE_BYTES = 50 * 2**20

Row = dict[str, Any]


def make_row(number: int) -> Row:
    texts = ("user", f"Question {number}?"), ("assistant", f"Answer {number}."), ("user", "More?"), ("assistant", "No.")
    return {"messages": [{"role": role, "content": content} for role, content in texts]}


def edit(change: Callable[[list[Row]], Any]) -> Callable[[Row], bytes]:
    def corrupt(row: Row) -> bytes:
        change(row["messages"])
        return json.dumps(row).encode()

    return corrupt


def insert(old: bytes, new: bytes) -> Callable[[Row], bytes]:
    def corrupt(row: Row) -> bytes:
        content = json.dumps(row).encode()
        assert old in content
        return content.replace(old, new, 1)

    return corrupt


def call(arguments: str) -> list[Row]:
    return [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]


CORRUPTIONS: dict[str, Callable[[Row], bytes]] = {
    "byte order mark": lambda row: b"\xef\xbb\xbf" + json.dumps(row).encode(),
    "NUL": insert(b"Question", b"\x00uestion"),
    "unknown role": edit(lambda messages: messages[0].update(role="human")),
    "role of another kind": edit(lambda messages: messages[0].update(role=["user"])),
    "two users": edit(lambda messages: messages.pop(1)),
    "two assistants": edit(lambda messages: messages.pop(2)),
    "late system": edit(lambda messages: messages.insert(2, {"role": "system", "content": "s"})),
    "assistant first": edit(lambda messages: messages.pop(0)),
    "user last": edit(lambda messages: messages.pop()),
    "empty content": edit(lambda messages: messages[2].update(content=" ")),
    "no content": edit(lambda messages: messages[1].pop("content")),
    "an image": edit(lambda messages: messages[0].update(content=[{"type": "image_url"}])),
    "bad weight": edit(lambda messages: messages[1].update(weight=0.5)),
    "nothing to learn": edit(lambda messages: [messages[at].update(weight=0) for at in (1, 3)]),
    "bad arguments": edit(lambda messages: messages[1].update(tool_calls=call("{town"))),
    "no messages": edit(lambda messages: messages.clear()),
    "duplicate keys": insert(b'"role"', b'"role": "user", "role"'),
    "not UTF-8": insert(b"Question", b"\xff\xfeuestion"),
    "not JSON": lambda _: b"User: Hi",
    "cut JSON": lambda row: json.dumps(row).encode()[:-9],
    "NaN": insert(b'"Question', b'NaN, "x": "Question'),
    "half a character": insert(b"Question", b"\\ud83d"),
    "nested too deeply": lambda _: b'{"messages": ' * 50_000,
    "a list": lambda row: json.dumps(row["messages"]).encode(),
    "a line that does not end": lambda row: json.dumps({**row, "more": "x" * MAX_LINE_BYTES}).encode(),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, int]:
    """A hundred files of forty rows, one of them bad, and its line."""
    rng = random.Random(SEED)
    folder = tmp_path_factory.mktemp("bad")
    files = {}
    for name, corrupt in CORRUPTIONS.items():
        for repeat in range(REPEATS):
            path = folder / f"{name.replace(' ', '_')}_{repeat}.jsonl"
            line = rng.randint(1, 40)
            lines = [json.dumps(make_row(number)).encode() for number in range(40)]
            lines[line - 1] = corrupt(make_row(line))
            path.write_bytes(b"\n".join(lines) + b"\n")
            files[path] = line
    return files


def test_there_are_a_hundred(bad_files: dict[Path, int]) -> None:
    assert len(bad_files) == 100


def test_each_is_refused_with_its_line(bad_files: dict[Path, int]) -> None:
    for path, line in bad_files.items():
        with pytest.raises(TrainingDataError) as caught:
            check_file(path)
        assert caught.value.to_openai()["error"]["param"] == "training_file", f"{path.name}, LOAM_SEED={SEED}"
        assert set(re.findall(r"\n  line (\d+)", caught.value.message)) == {str(line)}, f"{path.name}, LOAM_SEED={SEED}"


def test_each_fails_a_job_with_its_line(bad_files: dict[Path, int]) -> None:
    for path, line in bad_files.items():
        with pytest.raises(TrainingDataError) as caught:
            check_rows(path, "a.jsonl", "training_file", "supervised")
        assert caught.value.param == "training_file", f"{path.name}, LOAM_SEED={SEED}"
        assert re.findall(r"\n  line (\d+)", caught.value.message)[0] == str(line), f"{path.name}, LOAM_SEED={SEED}"
        assert str(path.parent) not in caught.value.message


def test_the_terminal_shows_faults_and_never_a_traceback(bad_files: dict[Path, int]) -> None:
    command = [sys.executable, "scripts/check_data.py", *map(str, bad_files)]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == TrainingDataError.exit_code
    assert ended.stderr == ""
    for path, line in bad_files.items():
        assert f"{path}: line {line}" in ended.stdout, f"{path.name}, LOAM_SEED={SEED}"
        assert f"{path}: 39 good rows" in ended.stdout, f"{path.name}, LOAM_SEED={SEED}"


def test_fifty_megabytes_without_a_newline_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    row = json.dumps(make_row(1)).encode()
    path.write_bytes(row + b"\n" + b"x" * HUGE_BYTES + b"\n" + row + b"\nnonsense\n")
    with pytest.raises(TrainingDataError, match=r"2 faults(?s:.*)line 2: found a line of more(?s:.*)line 4"):
        check_file(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match="1 fault"):
        check_file(path)
