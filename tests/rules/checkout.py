"""The checkout as the rules see it: which files belong to the project, and our modules as syntax trees."""

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("core", "train", "retrieval", "serve", "evaluation", "scripts")


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file: its path from the repository's root, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module


@functools.cache
def list_files() -> tuple[str, ...]:
    """Return every file that git tracks or would track, from the repository's root, sorted."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    return tuple(sorted(name for name in set(output.split("\0")) if name and (REPO / name).is_file()))


@functools.cache
def read_text_files() -> dict[str, str]:
    """Return every file that is UTF-8 text, by its path."""
    texts = {}
    for name in list_files():
        content = (REPO / name).read_bytes()
        if b"\0" in content[:8192]:
            continue
        texts[name] = content.decode("utf-8", errors="replace")
    return texts


@functools.cache
def read_modules() -> tuple[Module, ...]:
    """Return every Python file of the project."""
    return tuple(
        Module(name, text, ast.parse(text, name)) for name, text in read_text_files().items() if name.endswith(".py")
    )


def read_our_modules() -> tuple[Module, ...]:
    """Return the Python files of the packages and the examples: all but the tests."""
    return tuple(module for module in read_modules() if module.path.split("/")[0] in {*PACKAGES, "examples"})
