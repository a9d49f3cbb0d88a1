"""Tests about tests: each can fail, each skip says why, unit tests lie where their module's name leads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.checkout import PACKAGES, REPO, read_modules

PROVING_CALLS = ("raises", "fail", "warns", "assert", "check", "expect")


def find_faults(tree: ast.Module) -> Iterator[str]:
    """Yield the tests that prove nothing, the assertions that cannot fail and the skips without a reason."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            if not any(_is_proof(inner) for inner in ast.walk(node)):
                yield f"{node.name}: asserts nothing"
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant):
            yield f"{node.lineno}: an assertion of a constant"
        elif isinstance(node, ast.Call) and _is_bare_skip(node):
            yield f"{node.lineno}: a skip without a reason"


def _is_proof(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name == "pytest.mark.timeout" or name.rpartition(".")[2].startswith(PROVING_CALLS)


def _is_bare_skip(node: ast.Call) -> bool:
    return ast.unparse(node.func) in {"pytest.skip", "pytest.mark.skip"} and not node.args and not node.keywords


def test_every_test_can_fail() -> None:
    tests = [module for module in read_modules() if module.path.startswith("tests/")]
    found = {module.path: list(find_faults(module.tree)) for module in tests}
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "source", ["def test_a():\n    run()", "assert 1", "pytest.skip()", "async def test_b():\n    await run()"]
)
def test_the_rule_sees_each_kind(source: str) -> None:
    assert list(find_faults(ast.parse(source)))


def test_unit_tests_mirror_the_packages() -> None:
    strays = []
    for path in sorted((REPO / "tests" / "unit").rglob("test_*.py")):
        folder = path.parent.relative_to(REPO / "tests" / "unit")
        if folder.parts[0] in PACKAGES and not _find_module(REPO / folder, path.stem.removeprefix("test_")):
            strays.append(str(path.relative_to(REPO)))
    assert strays == [], "name a unit test after its module: test_<module>.py or test_<module>_<what>.py"


def _find_module(folder: Path, name: str) -> bool:
    words = name.split("_")
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    return any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for name in names)
