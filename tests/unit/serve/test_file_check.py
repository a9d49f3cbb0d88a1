"""An uploaded file is checked in a process of its own: rows counted, or every fault under the owner's name for it."""

import asyncio
import json
from pathlib import Path

import pytest

from core.errors import TrainingDataError
from serve.file_check import ask_module, check_rows, check_upload_rows

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_good_files_are_counted(tmp_path: Path) -> None:
    assert check_rows(write(tmp_path / "file-a", CHAT, CHAT), "a.jsonl", "training_file", "supervised") == 2
    assert check_rows(write(tmp_path / "file-b", PAIR), "b.jsonl", "training_file", "dpo") == 1


def test_faults_come_under_the_owners_name_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "file-a", CHAT, {"messages": []}, CHAT, "nonsense")
    with pytest.raises(TrainingDataError) as refused:
        asyncio.run(check_upload_rows(path, "a.jsonl", "validation_file", "supervised"))
    assert refused.value.param == "validation_file"
    assert refused.value.message.startswith("a.jsonl: 2 faults")
    assert "line 2" in refused.value.message
    assert "line 4" in refused.value.message
    assert str(tmp_path) not in refused.value.message


def test_the_process_counts_too(tmp_path: Path) -> None:
    path = write(tmp_path / "file-a", CHAT)
    assert asyncio.run(check_upload_rows(path, "a b; $(x).jsonl", "training_file", "supervised")) == 1


@pytest.mark.parametrize(("row", "method"), [(CHAT, "dpo"), (PAIR, "supervised")])
def test_rows_of_the_other_method_are_refused(tmp_path: Path, row: object, method: str) -> None:
    with pytest.raises(TrainingDataError, match=f"method {method}.*line 1"):
        check_rows(write(tmp_path / "file-a", row), "a.jsonl", "training_file", method)


def test_a_file_that_takes_too_long_is_refused_and_not_tried_for_ever(tmp_path: Path) -> None:
    path = write(tmp_path / "file-a", CHAT)
    with pytest.raises(TrainingDataError, match=r"a.jsonl: it could not be checked within 0.01 s"):
        asyncio.run(ask_module("serve.file_check", [str(path), "a.jsonl", "f", "supervised"], 0.01, "a.jsonl", "f"))
