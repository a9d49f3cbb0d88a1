"""The console's files by themselves: nothing from elsewhere, no markup from strings, no file without a reader."""

import re
from pathlib import Path

import pytest

from serve.routes.console import FOLDER, MEDIA_TYPES, POLICY

SCRIPTS = sorted(FOLDER.glob("*.js"))
BANNED = (
    r"\beval\(", r"new Function", r"innerHTML", r"outerHTML", r"insertAdjacentHTML", r"document\.write",
    r"localStorage\.setItem\(\"(?!loam\.theme)",
    r"https?://(?!www\.w3\.org/2000/svg)", r"\bimport\(",
)  # fmt: skip
MAX_LINES = 500


def find_banned(text: str) -> list[str]:
    """Return what a script holds that it may not."""
    return [pattern for pattern in BANNED if re.search(pattern, text)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_markup_and_asks_nobody_else(path: Path) -> None:
    text = path.read_text()
    assert find_banned(text) == []
    assert text.count("\n") <= MAX_LINES
    assert text.startswith("// ")


@pytest.mark.parametrize(
    "text", ['x.innerHTML = "a"', 'fetch("https://cdn.example/a.js")', 'localStorage.setItem("key", k)', "eval(a)"]
)
def test_the_rule_sees_each_kind(text: str) -> None:
    assert find_banned(text)


def test_every_import_leads_to_a_file_and_every_file_is_asked_for() -> None:
    imported = {name for path in SCRIPTS for name in re.findall(r'from "\./([\w.-]+)"', path.read_text())}
    page = (FOLDER / "index.html").read_text()
    linked = set(re.findall(r'(?:src|href)="([\w.-]+)"', page))
    files = {path.name for path in FOLDER.iterdir()}
    assert imported | linked <= files
    assert files - {"index.html"} == imported | linked
    assert {path.suffix for path in FOLDER.iterdir()} <= set(MEDIA_TYPES)


def test_the_page_has_nothing_inline() -> None:
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page) == []


def test_the_policy_allows_own_files_only() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in POLICY
