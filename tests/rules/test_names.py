"""Names that say nothing are refused, and so are modules that would hide a library.

`python train/run.py` puts train/ first on the search path: a train/datasets.py would then be what `import datasets`
finds, in our code and in every library.
"""

import ast
import importlib.metadata
import re
import sys

import pytest

from tests.rules.checkout import PACKAGES, read_modules, read_our_modules

EMPTY_MODULE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "shared", "stuff"}
HARMLESS_SHADOWS = {"scripts/models"}  # llama-models (tests only) brings a `models` that no program of ours imports
EMPTY_CLASS_NAME = re.compile(r"(Manager|Helper|Processor|Factory|Utils?)$")


def find_empty_segments(path: str) -> set[str]:
    """Return the parts of a module's path that say nothing about what it owns."""
    segments = re.split(r"[/_]", path.removesuffix(".py"))
    return EMPTY_MODULE_NAMES.intersection(segments)


def test_no_module_has_an_empty_name() -> None:
    found = {module.path: find_empty_segments(module.path) for module in read_modules()}
    assert {path: segments for path, segments in found.items() if segments} == {}


@pytest.mark.parametrize("path", ["core/utils.py", "serve/model_manager.py", "train/common/data.py"])
def test_the_rule_sees_an_empty_name(path: str) -> None:
    assert find_empty_segments(path)


def test_no_class_has_an_empty_name() -> None:
    names = {
        f"{module.path}: {node.name}"
        for module in read_our_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and EMPTY_CLASS_NAME.search(node.name)
    }
    assert names == set()


def find_shadows(paths: list[str], libraries: set[str]) -> set[str]:
    """Return the modules and subpackages, directly inside a folder that is run from, named like a library."""
    shadows = set()
    for path in paths:
        package, _, rest = path.partition("/")
        name = rest.split("/")[0].removesuffix(".py")
        if package in PACKAGES and name != "__init__" and name in libraries:
            shadows.add(f"{package}/{name}")
    return shadows


def test_no_module_hides_a_library() -> None:
    libraries = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    assert {"datasets", "tokenizers", "logging"} <= libraries
    assert find_shadows([module.path for module in read_our_modules()], libraries) == HARMLESS_SHADOWS


def test_the_rule_sees_a_shadow() -> None:
    paths = ["train/datasets.py", "serve/http/app.py", "train/data.py"]
    assert find_shadows(paths, {"datasets", "http"}) == {"train/datasets", "serve/http"}
