"""The environment: locks hold what pyproject.toml wants and nothing of this machine; set-up's errors say what to do."""

import ast
import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.rules.checkout import REPO, read_our_modules

SETS = ("cpu", "cuda")
LOCKS = (*SETS, "cuda-image")
ONLY_WITH_DEVELOPMENT = {"scripts/sweep.py", "examples/acme/make_documents.py"}
"""Programs that the images cannot run: each says so, or is not called there."""


def read_lock(name: str) -> dict[str, str]:
    """Return the version that a lock pins for each package."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (REPO / "locks" / f"{name}.txt").read_text(), re.MULTILINE))


def read_wanted(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, with the named extras."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", SETS)
def test_a_lock_satisfies_the_project(name: str) -> None:
    lock = read_lock(name)
    for wanted in read_wanted(name, "dev"):
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert key in lock, f"{wanted} is not in locks/{name}.txt: run make lock"
        assert wanted.specifier.contains(lock[key], prereleases=True), f"{wanted} against {lock[key]}: run make lock"


def test_the_images_lock_is_the_cuda_lock_without_what_development_needs() -> None:
    image, cuda = read_lock("cuda-image"), read_lock("cuda")
    assert image.items() < cuda.items(), "run make lock"
    names = {re.sub(r"[-_.]+", "-", wanted.name).lower() for wanted in read_wanted("cuda")}
    assert names <= image.keys()
    assert {"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "playwright", "llama-models"}.isdisjoint(image)


def test_no_program_of_the_images_imports_what_they_leave_out() -> None:
    left_out = read_lock("cuda").keys() - read_lock("cuda-image").keys()
    foreign = {module for name in left_out for module in list_modules(name)}
    assert {"pytest", "hypothesis", "reportlab"} <= foreign
    users = {module.path for module in read_our_modules() if foreign & set(list_imports(module.tree))}
    assert users == ONLY_WITH_DEVELOPMENT


def list_modules(package: str) -> set[str]:
    """Return the top-level names that an installed package brings."""
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}


def list_imports(tree: ast.Module) -> list[str]:
    """Return the top-level name of everything that a module imports."""
    nodes = list(ast.walk(tree))
    plain = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    chosen = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return [name.partition(".")[0] for name in (*plain, *chosen)]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_line_and_names_no_source(name: str) -> None:
    lines = (REPO / "locks" / f"{name}.txt").read_text().splitlines()
    odd = [line for line in lines if not re.match(r"\s*#|[a-z0-9-]+==\S+( ; .*)?$", line)]
    assert odd == []
    assert [line for line in lines if "://" in line or "--" in line] == []


@pytest.mark.parametrize("name", SETS)
def test_a_lock_leaves_out_what_its_overrides_drop(name: str) -> None:
    dropped = re.findall(r"^([a-z0-9-]+) ;", (REPO / "locks" / f"overrides-{name}.txt").read_text(), re.MULTILINE)
    assert "kernels" in dropped
    assert set(dropped) & read_lock(name).keys() == set()


def test_both_locks_agree_where_results_depend_on_it() -> None:
    cpu, cuda = read_lock("cpu"), read_lock("cuda")
    same = ("transformers", "tokenizers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "fastapi", "openai")
    assert {name: cpu[name] for name in same} == {name: cuda[name] for name in same}
    assert cpu["torch"] == f"{cuda['torch']}+cpu"


def run_setup(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run set-up in a folder that has only what set-up reads."""
    (folder / "scripts").mkdir()
    (folder / "scripts" / "setup_env.sh").write_bytes((REPO / "scripts" / "setup_env.sh").read_bytes())
    (folder / "locks").symlink_to(REPO / "locks")
    (folder / "pyproject.toml").symlink_to(REPO / "pyproject.toml")
    environment = {**os.environ, "LOAM_SET": "cpu", **settings}
    command = ["bash", "scripts/setup_env.sh"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"PYTHON": "no-such-python"}, "wanted Python 3.11 as 'no-such-python'"),
        ({"LOAM_MIN_FREE_GB": "9999999"}, "wanted 9999999 GB of free disk"),
        ({"LOAM_SET": "tpu"}, "wanted LOAM_SET to be cpu or cuda"),
        ({"LOAM_SET": "cuda-image", "LOAM_MIN_FREE_GB": "9999999"}, "wanted 9999999 GB of free disk"),
    ],
)
def test_setup_says_what_it_wanted_found_and_what_to_do(tmp_path: Path, settings: dict[str, str], wanted: str) -> None:
    result = run_setup(tmp_path, **settings)
    assert result.returncode == 1
    assert wanted in result.stderr
    assert "found  " in result.stderr
    assert "do     " in result.stderr
    assert not (tmp_path / ".venv").exists()
