"""The runner of full sets: counts what tests counted, never takes a skip for a proof, goes on where it was stopped."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import prove_durability
from scripts.prove_durability import ROWS, Record, hash_code, main, read_record, read_report, render_table, run_row
from tests.rules.checkout import REPO

GOOD = """
def test_one(record_property):
    record_property("kills", 3)
    record_property("ready_again_s", 1.5)
def test_two(record_property):
    record_property("kills", 4)
    record_property("ready_again_s", 0.5)
"""
SKIPPED = "import pytest\ndef test_three():\n    pytest.skip('nothing to mount')\n"
FAILED = "def test_four(record_property):\n    record_property('kills', 9)\n    assert not 1\n"


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A row X1 whose tests the test writes, and records of its own."""
    path = tmp_path / "test_row.py"
    monkeypatch.setattr(prove_durability, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(prove_durability, "ROWS", {"X1": (str(path), "-c", "/dev/null", "-p", "no:cacheprovider")})
    return path


def test_a_skip_and_a_failure_are_no_proof(tests: Path) -> None:
    tests.write_text(GOOD + SKIPPED + FAILED)
    record = run_row("X1", "code")
    assert (record.passed, record.failed, record.skipped) == (2, 1, 1)
    assert record.counts == {"kills": 7, "ready_again_s": 1.5}  # of those that passed
    for found in ((2, 1, 0), (2, 0, 1), (0, 0, 0)):
        assert not replace(record, passed=found[0], failed=found[1], skipped=found[2]).is_proof
    assert read_record("X1", "code") is None
    assert "| X1 | not shown |" in render_table(["X1"], "code")


def test_a_run_goes_on_with_what_has_not_been_shown(
    tests: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tests.write_text(FAILED)
    monkeypatch.setattr(sys, "argv", ["prove_durability.py"])
    with pytest.raises(SystemExit, match="1"):
        main()
    tests.write_text(GOOD)
    main()
    shown = capfd.readouterr().out
    assert "2 passed" in shown
    assert "| X1 | 7 kills, 1.5 ready again in seconds | 2 | " in shown
    main()
    shown = capfd.readouterr().out
    assert "X1: shown by this code already" in shown
    assert "passed in" not in shown
    assert read_record("X1", "other code") is None


def test_a_report_that_was_not_written_is_a_failure(tmp_path: Path) -> None:
    assert read_report(tmp_path / "missing.xml") == (0, 1, 0, {})


def test_the_code_has_one_hash() -> None:
    assert hash_code() == hash_code()
    assert Record("X", "", "", "", 0, 0, 0, 0.0, {}).is_proof is False


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_tests_that_exist_and_stands_in_a_page(row: str) -> None:
    for word in ROWS[row]:
        path, _, name = word.partition("::")
        if path.startswith("tests/"):
            assert f"def {name}" in (REPO / path).read_text()
    pages = [(REPO / "docs" / name).read_text() for name in ("durability.md", "benchmarks/promises.md")]
    assert any(f"| {row} " in page for page in pages)


def test_a_row_that_is_not_known_is_refused() -> None:
    command = [sys.executable, "scripts/prove_durability.py", "--show", "D1", "X9"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found X9" in done.stderr
