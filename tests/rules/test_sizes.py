"""Files stay under 500 lines and functions under 80: what a reader can hold."""

import ast
from collections.abc import Iterator

from tests.rules.checkout import read_modules

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80


def find_long_functions(tree: ast.Module, limit: int) -> Iterator[tuple[str, int]]:
    """Yield name and length of each function longer than the limit, its docstring counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                yield node.name, lines


def test_files_are_short() -> None:
    sizes = {module.path: module.text.count("\n") for module in read_modules()}
    assert {path: lines for path, lines in sizes.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = {
        f"{module.path}: {name}": lines
        for module in read_modules()
        for name, lines in find_long_functions(module.tree, MAX_FUNCTION_LINES)
    }
    assert found == {}


def test_the_rule_sees_a_long_function() -> None:
    source = "def short():\n    return 1\n\n\nasync def long():\n" + "    x = 1\n" * 80
    assert list(find_long_functions(ast.parse(source), MAX_FUNCTION_LINES)) == [("long", 81)]
