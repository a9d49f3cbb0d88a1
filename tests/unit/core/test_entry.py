"""A program's begin: Ctrl-C during an import is one line, and a bug still shows where it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
INTERRUPT = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also where the tests run in the background
os.kill(os.getpid(), signal.SIGINT)
"""


def run_with(module: str, text: str, folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds a module of ours in a library's place."""
    (folder / f"{module}.py").write_text(text)
    return subprocess.run(
        [sys.executable, program],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("train/run.py", "json"),
        ("retrieval/run.py", "omegaconf"),
        ("serve/run.py", "omegaconf"),
        ("scripts/search.py", "hydra"),
        ("scripts/demo.py", "openai"),
    ],
)
def test_ctrl_c_during_imports_is_one_line(program: str, module: str, tmp_path: Path) -> None:
    ended = run_with(module, INTERRUPT, tmp_path, program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: interrupted\n")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    ended = run_with("omegaconf", "raise ValueError('a bug')\n", tmp_path, "serve/run.py")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ValueError: a bug" in ended.stderr
