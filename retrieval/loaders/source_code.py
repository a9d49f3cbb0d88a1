r"""Loads source code: a class or a function is a section, below the file's name: "store.py > Store > find".

Owns: finding where definitions begin and end. Python says it by its own parser; other languages by a keyword and by
indentation, which is a guess. Text is kept as it stands, tabs as four spaces. Runs nothing.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from retrieval.loaders.outline import Outline

_DEFINING = frozenset(
    (
        *(
            ".c",
            ".cc",
            ".cpp",
            ".cs",
            ".cu",
            ".cxx",
            ".dart",
            ".ex",
            ".fs",
            ".go",
            ".groovy",
            ".h",
            ".hpp",
            ".java",
            ".jl",
        ),
        *(".js", ".jsx", ".kt", ".lua", ".mjs", ".php", ".pl", ".ps1", ".py", ".rb", ".rs", ".scala", ".sh", ".bash"),
        *(".svelte", ".swift", ".ts", ".tsx", ".vb", ".vue", ".zig", ".graphql", ".proto"),
    )
)
_MODIFIER = (
    r"(?:export|default|declare|public|private|protected|internal|static|abstract|final|sealed|open|override|virtual|async"
    r"|unsafe|extern|inline|const|partial|data|pub(?:\([\w:]+\))?)"
)
_KEYWORD = (
    r"(?:class|interface|trait|struct|enum|impl(?:<[^>]{0,80}>)?|object|protocol|extension|module|namespace|defmodule"
    r"|record|message|service|type|func|function|fn|fun|def|defp|sub)"
)
_RECEIVER = r"(?:\([^()]{0,80}\)\s*)?"  # of a method in Go
_DEFINITION = re.compile(
    rf"[ ]{{0,40}}(?:{_MODIFIER}\s+){{0,5}}{_KEYWORD}\b[*]?\s+{_RECEIVER}([A-Za-z_$][\w$.:<>]{{0,100}})"
)
_LEADING = re.compile(r"\s*(?:@|#\[|//|/\*|\*|--|#(?!include|define|if|endif|pragma))")  # belongs to what follows it
_CLOSING = re.compile(r"\s*(?:[)}\]][;,)}\]]*|end\b.*)\s*")
_MAX_PYTHON_CHARS = 2_000_000
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _Definition:
    """Lines from `first` up to `end` (left out), counted from 0."""

    first: int
    end: int
    name: str


def load_source(text: str, outline: Outline, name: str) -> None:
    """Add program text as it stands, in a section for each class and function.

    Args:
        text: The file.
        outline: Where it goes.
        name: Of the file; the outermost heading.
    """
    lines = text.expandtabs(4).split("\n")
    outline.add_heading(0, name)
    path: list[_Definition] = []
    start = 0
    for place, current in [*_list_turns(_find_definitions(lines, name)), (len(lines), [])]:
        if place > start:
            outline.add_text("\n".join(lines[start:place]))
            start = place
        kept = sum(1 for one, other in zip(path, current, strict=False) if one == other)
        if len(current) == kept:  # back in what stands around
            _reopen(outline, name, current)
        else:
            for level in range(kept, len(current)):
                outline.add_heading(level + 1, current[level].name)
        path = current


def _reopen(outline: Outline, name: str, path: list[_Definition]) -> None:
    if path:
        outline.add_heading(len(path), path[-1].name)
    else:
        outline.add_heading(0, name)


def _list_turns(definitions: Iterable[_Definition]) -> Iterator[tuple[int, list[_Definition]]]:
    """Yield each line at which another definition holds, with those that hold there, from the outside."""
    path: list[_Definition] = []
    for definition in sorted(definitions, key=lambda one: (one.first, -one.end)):
        while path and path[-1].end <= definition.first:
            end = path.pop().end
            while path and path[-1].end <= end:
                path.pop()
            yield end, list(path)
        if len(path) < _MAX_DEPTH:
            path.append(definition)
            yield definition.first, list(path)
    while path:
        end = path.pop().end
        while path and path[-1].end <= end:
            path.pop()
        yield end, list(path)


def _find_definitions(lines: list[str], name: str) -> list[_Definition]:
    ending = PurePath(name).suffix.lower()
    if ending == ".py" and (found := _parse_python("\n".join(lines))) is not None:
        return found
    return list(_guess_definitions(lines)) if ending in _DEFINING else []


def _parse_python(text: str) -> list[_Definition] | None:
    """Return the classes and functions of a Python file, or None where it is none."""
    if len(text) > _MAX_PYTHON_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the file
            tree = ast.parse(text)
        return list(_walk_python(tree, 0))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _walk_python(node: ast.AST, depth: int) -> Iterator[_Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([child.lineno, *(mark.lineno for mark in child.decorator_list)])
            yield _Definition(first - 1, child.end_lineno or child.lineno, child.name)
        if depth < _MAX_DEPTH and isinstance(child, ast.ClassDef | ast.If | ast.Try):
            yield from _walk_python(child, depth + 1)


def _guess_definitions(lines: list[str]) -> Iterator[_Definition]:
    """Yield what a keyword begins and a line that is indented no deeper ends; closing brackets still belong to it."""
    open_: list[tuple[int, int, str]] = []  # indent, first line, name
    held: int | None = None  # where the comments and marks began that stand right above
    for number, line in enumerate(lines):
        if not line.strip():
            held = None
            continue
        indent = len(line) - len(line.lstrip())
        is_closing = _CLOSING.fullmatch(line) is not None
        match = _DEFINITION.match(line)
        begins = number if held is None else held
        while open_ and (indent < open_[-1][0] or (indent == open_[-1][0] and not is_closing and line.strip() != "{")):
            _, first, name = open_.pop()
            yield _Definition(first, begins, name)
        if match:
            open_.append((indent, begins, match.group(1)))
        held = begins if _LEADING.match(line) and not match else None
    for _, first, name in open_:
        yield _Definition(first, len(lines), name)
