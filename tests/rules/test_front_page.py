"""What the pages promise exists: make targets, programs, linked files; the version is the changelog's newest."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.rules.checkout import REPO, read_text_files

PAGES = {path: text for path, text in read_text_files().items() if path.endswith(".md") and "examples/" not in path}
HISTORY = {"CHANGELOG.md"}
MAX_DECISION_LINES = 40


def read_targets() -> dict[str, str]:
    """Return the Makefile's targets with their one line of help."""
    lines = re.findall(r"^([a-z][a-z-]*):.*?(?:##\s*(.*))?$", (REPO / "Makefile").read_text(), re.MULTILINE)
    return {name: help_text for name, help_text in lines if name != "export"}


def test_the_version_is_the_changelogs_newest() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_every_make_target_explains_itself() -> None:
    targets = read_targets()
    assert {"setup", "demo", "test", "help"} <= targets.keys()
    assert [name for name, help_text in targets.items() if not help_text] == []
    phony = re.search(r"^\.PHONY: (.*)$", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets.keys()


@pytest.mark.parametrize("page", sorted(PAGES.keys() - HISTORY))
def test_a_page_names_only_make_targets_that_exist(page: str) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", PAGES[page], re.DOTALL)
    named = {name for part in code for name in re.findall(r"(?:^|[`\s])make ([a-z][a-z-]*)", part)}
    assert named <= read_targets().keys()


@pytest.mark.parametrize("page", sorted(PAGES.keys() - HISTORY))
def test_a_page_names_only_programs_that_exist(page: str) -> None:
    named = set(re.findall(r"\bpython ((?:\w+/)+\w+\.py)\b", PAGES[page]))
    assert {name for name in named if not (REPO / name).is_file()} == set()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_links_only_to_files_that_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page])
    local = {link for link in links if not re.match(r"[a-z]+:", link)}
    assert {link for link in local if not (REPO / Path(page).parent / link).exists()} == set()


def test_decision_records_are_short() -> None:
    records = {path: text.count("\n") for path, text in PAGES.items() if path.startswith("docs/decisions/")}
    assert {path: lines for path, lines in records.items() if lines > MAX_DECISION_LINES} == {}
