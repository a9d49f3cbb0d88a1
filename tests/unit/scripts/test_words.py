"""scripts.words: what is wrong with a command line is told by key, all at once; --help tells what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from scripts.words import describe_word, refuse_words, show_help

REPO = Path(__file__).resolve().parents[3]
WANTED = {"days": "N", "output": "json|table"}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("days=x", "days: wanted days=N, found 'x'"),
        ("output", "output: wanted output=json|table, found no value"),
        ("outputs=json", "wanted [DIR] [days=N] [output=json|table], found 'outputs=json'. Did you mean output="),
        ("--days=3", "found '--days=3'. Did you mean days=N?"),
        ("zzz=1", "wanted [DIR] [days=N] [output=json|table], found 'zzz=1'"),
    ],
)
def test_a_word_is_told_by_its_key_or_by_the_nearest_one(word: str, told: str) -> None:
    assert told in describe_word(word, WANTED, "[DIR]")


def test_all_faults_are_told_at_once() -> None:
    refuse_words([])
    with pytest.raises(ConfigError, match=re.escape("one; two (--help tells more)")):
        refuse_words(["one", "two"])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_the_programs_own_description(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_help(["x"], "What it does.")
    with pytest.raises(SystemExit) as ending:
        show_help(["x", word], "\nWhat it does.\n")
    assert (ending.value.code, capsys.readouterr().out) == (0, "What it does.\n")


@pytest.mark.parametrize("script", ["doctor", "prune"])
def test_the_programs_know_help(script: str) -> None:
    command = [sys.executable, f"scripts/{script}.py", "--help"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert f"python scripts/{script}.py [DATA_DIR]" in done.stdout
