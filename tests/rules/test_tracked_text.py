"""What may stand in a tracked file: nothing unfinished, no path of one machine, no package host, no secret, no data."""

import re

import pytest

from tests.rules.checkout import REPO, list_files, read_text_files

# Put together from pieces, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"]) + r")\b")
MACHINE_PATH = re.compile(
    r"(^|[^\w.])/(" + "|".join(["wo" + "rk", "ro" + "ot", "o" + "pt", "fa" + "rm"]) + r")/[a-z]", re.M
)
PACKAGE_HOST = re.compile("|".join([r"pypi\." + "org", r"python" + r"hosted\.org", r"download\.py" + r"torch\.org"]))
SECRET = re.compile(r"\b(sk-[A-Za-z0-9]{24,}|hf_[A-Za-z0-9]{30,}|ghp_[A-Za-z0-9]{30,})\b|-----BEGIN [A-Z ]*PRIVATE KEY")
MAX_FILE_BYTES = 1_000_000


def find_lines(pattern: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    """Return path, line number and match of every hit."""
    return [
        f"{path}:{number}: {match.group().strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in pattern.finditer(line)
    ]


@pytest.mark.parametrize("pattern", [UNFINISHED, MACHINE_PATH, PACKAGE_HOST, SECRET], ids=lambda p: p.pattern[:24])
def test_no_tracked_file_holds(pattern: re.Pattern[str]) -> None:
    assert find_lines(pattern, read_text_files()) == []


def test_the_rule_sees_each_kind() -> None:
    bad = {"a.py": "# TO" + "DO later", "b.sh": "cd /wo" + "rk/main", "c.txt": "https://pypi." + "org/simple"}
    assert [len(find_lines(pattern, bad)) for pattern in (UNFINISHED, MACHINE_PATH, PACKAGE_HOST)] == [1, 1, 1]


def test_nothing_that_a_run_makes_is_tracked() -> None:
    made = re.compile(r"^(data|outputs|multirun|\.venv|\.cache|build|dist)/|\.(safetensors|gguf|bin|pt|db|faiss|pyc)$")
    assert [path for path in list_files() if made.search(path)] == []


def test_tracked_files_are_small() -> None:
    sizes = {path: (REPO / path).stat().st_size for path in list_files()}
    assert {path: size for path, size in sizes.items() if size > MAX_FILE_BYTES} == {}
