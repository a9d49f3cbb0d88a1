"""docs/operations.md: the drill of backup and restore, run as the page has it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.checkout import REPO

DOCUMENTS = REPO / "examples" / "acme" / "documents"
QUESTION = "Within how many days of delivery can a customer return a product?"


def read_commands(heading: str) -> str:
    """Return the first block of commands below a heading."""
    page = (REPO / "docs" / "operations.md").read_text()
    found = re.search(rf"^## {re.escape(heading)}\n.*?^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/operations.md has no commands under «{heading}»"
    return found[1]


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: seven programs")
def test_the_drill_brings_everything_back(demo_models: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("returns-policy.md", "hr-leave.docx", "brook-40-manual.pdf", "service-plan.html"):
        shutil.copy(DOCUMENTS / name, tmp_path / "source")
    data = tmp_path / "data"
    data.mkdir()
    (data / "models").symlink_to(demo_models / "models")
    ingest = ["retrieval/run.py", "action=ingest", "store=acme", f"source={tmp_path / 'source'}"]
    environment = {**os.environ, "LOAM_DATA_DIR": str(data)}
    subprocess.run([sys.executable, *ingest], cwd=REPO, env=environment, check=True, capture_output=True)
    places = {
        ".venv/bin/python": sys.executable, "/var/backups/loam": str(tmp_path / "backups"), "/srv/loam/data": str(data),
        "STORE": "acme", "a question whose answer you know": QUESTION,
    }  # fmt: skip
    commands = read_commands("Backup and restore: the drill")
    for word, place in places.items():
        assert word in commands
        commands = commands.replace(word, place)
    drill = ["bash", "-euc", commands]
    done = subprocess.run(drill, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
    assert "returns-policy.md" in done.stdout.partition("all is well")[2]
    assert list((tmp_path / "backups").iterdir()) == []
