"""Imports point one way: the contracts in pyproject.toml hold, and they are the ones that the design names."""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.rules.checkout import PACKAGES, REPO


def test_the_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program, "--no-cache"], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_package_stands_under_the_contracts() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == set(PACKAGES)
    layers = next(contract for contract in settings["contracts"] if contract["type"] == "layers")
    named = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    assert named == set(PACKAGES)
