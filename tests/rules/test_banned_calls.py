"""Calls that run foreign code or swallow errors do not occur in our packages (promise A2)."""

import ast
from collections.abc import Iterator

import pytest

from tests.rules.checkout import read_our_modules

BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BANNED_CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "pandas.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
BANNED_TRUE = {"shell", "trust_remote_code", "allow_pickle", "allow_dangerous_deserialization"}


def find_faults(tree: ast.Module) -> Iterator[str]:
    """Yield line and cause of each banned import, call, switch and silent except."""
    for node in ast.walk(tree):
        for cause in (*_read_imports(node), *_read_call(node), *_read_switches(node), *_read_handler(node)):
            yield f"{getattr(node, 'lineno', 0)}: {cause}"


def _read_imports(node: ast.AST) -> Iterator[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    yield from (f"import {name}" for name in names if name.split(".")[0] in BANNED_IMPORTS)


def _read_call(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
        yield f"call of {ast.unparse(node.func)}"


def _read_switches(node: ast.AST) -> Iterator[str]:
    pairs: list[tuple[str, ast.expr]] = []
    if isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
    elif isinstance(node, ast.Dict):
        pairs = [
            (str(key.value), value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        ]
    for name, value in pairs:
        if name in BANNED_TRUE and isinstance(value, ast.Constant) and value.value is True:
            yield f"{name}=True"


def _read_handler(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler) and all(
        isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in node.body
    ):
        yield "an error is swallowed without a word"


def test_our_packages_are_free_of_banned_calls() -> None:
    found = {module.path: list(find_faults(module.tree)) for module in read_our_modules()}
    assert len(found) > len({"core", "train"})
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=False)",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "load(path, trust_remote_code=True)",
        "load(**{'trust_remote_code': True})",
        "try:\n    run()\nexcept OSError:\n    pass",
        "try:\n    run()\nexcept OSError:\n    ...",
    ],
)
def test_the_rule_sees_each_kind(source: str) -> None:
    assert list(find_faults(ast.parse(source)))


@pytest.mark.parametrize("source", ["model.eval()", "run(shell=False)", "safetensors.torch.load_file(path)"])
def test_the_rule_lets_harmless_code_pass(source: str) -> None:
    assert not list(find_faults(ast.parse(source)))
