"""A Python that has some of this environment's packages and nothing else: neither the others nor the project itself.

Made as a virtual environment whose packages are links, so that what is missing is missing for every process that it
starts, and for those that look before they import.
"""

import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BARE = ("torch", "transformers", "accelerate", "peft", "sentence-transformers")
"""What a machine with a card and no network was found to have, with what they require."""
PROJECT = "loam"


def list_installed() -> set[str]:
    """Return every package of this environment but the project."""
    names: set[str] = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    return names - {PROJECT}


def list_required(names: Iterable[str]) -> set[str]:
    """Return packages with what they require, and what that requires, as far as it is installed."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            required = distribution(name).requires or []
        except PackageNotFoundError:  # for another system, say
            continue
        found.add(name)
        wanted = map(Requirement, required)
        left += [
            canonicalize_name(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def make_python(folder: Path, names: Iterable[str]) -> Path:
    """Make it and return its program.

    Args:
        folder: Made anew.
        names: Packages, as `list_installed` names them.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in names:
        for path in _list_tops(distribution(name)):
            if not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


def _list_tops(package: Distribution) -> set[Path]:
    """Return the files and folders that a package has put beside the others'."""
    tops = {Path(file.parts[0]) for file in package.files or () if file.parts[0] not in {"..", "__pycache__", "bin"}}
    return {Path(str(package.locate_file(top))) for top in tops}
