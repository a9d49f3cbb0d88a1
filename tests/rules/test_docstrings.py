"""Every module says what it owns; every public class and function says what it does."""

import ast
from collections.abc import Iterator

from tests.rules.checkout import read_modules, read_our_modules


def find_undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield the public definitions without a docstring; what stands inside a function is private."""
    if not ast.get_docstring(tree):
        yield "module"
    pending: list[ast.Module | ast.ClassDef] = [tree]
    while pending:
        for node in pending.pop().body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name[0] == "_":
                continue
            if not ast.get_docstring(node) and not _is_overload(node):
                yield node.name
            if isinstance(node, ast.ClassDef):
                pending.append(node)


def _is_overload(node: ast.AST) -> bool:
    return any(ast.unparse(name).endswith("overload") for name in getattr(node, "decorator_list", []))


def test_everything_public_has_a_docstring() -> None:
    found = {module.path: list(find_undocumented(module.tree)) for module in read_our_modules()}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_test_module_says_what_it_shows() -> None:
    silent = [module.path for module in read_modules() if module.text.strip() and not ast.get_docstring(module.tree)]
    assert silent == []


def test_the_rule_sees_what_is_missing() -> None:
    source = '"""Doc."""\nclass A:\n    """Doc."""\n    def shown(self): ...\n    def _hidden(self): ...\ndef b(): ...'
    assert set(find_undocumented(ast.parse(source))) == {"shown", "b"}
