"""scripts/check_data.py says what a file is and every fault in it, and ends with the code that the faults ask for."""

from pathlib import Path

import pytest

from core.formats import Columns, DataFormat
from scripts.check_data import check


def test_a_good_file_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nq,a\nr,b\n")
    assert check(path, DataFormat.auto, Columns("question", "answer")) == 0
    out = capsys.readouterr().out
    assert (
        out
        == f"{path}: 2 good rows, 0 faults, format: prompt_completion (prompt from question, completion from answer)\n"
    )


def test_every_fault_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("no\n" * 500)
    assert check(path, DataFormat.auto, Columns()) == 3
    assert f"{path}: line 500: not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code", "said"), [("none.jsonl", 4, "found none"), ("bad.parquet", 3, "Parquet")])
def test_what_is_no_file_of_rows_is_said_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, said: str
) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no")
    assert check(tmp_path / name, DataFormat.auto, Columns()) == code
    assert said in capsys.readouterr().out


def test_an_empty_file_has_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    assert check(path, DataFormat.auto, Columns()) == 3
    assert "at least one row" in capsys.readouterr().out
