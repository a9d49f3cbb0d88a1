"""List the licence of every package that a lock brings, and judge whether it fits.

    python scripts/licences.py [write=true] [online=true]

Reads the metadata of installed packages, and of those that only the other set has what docs/licences.md knew before, or
what pip tells with online=true. `write=true` writes docs/licences.md. Ends with 6 where a licence does not fit or is
not known. A judgement by name is no lawyer's; the texts are in each bundle (licences/third-party.txt).
"""

from core.entry import begin_program

begin_program()

import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import cast

from packaging.utils import canonicalize_name

from core.config import run_command
from core.errors import ConfigError, ContractError, InputError
from core.layout import write_file
from core.logs import configure_logging
from scripts.bundle_notices import LICENCE_FILE, read_licence

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "licences.md"
SETS = ("cpu", "cuda")
FREE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|CNRI|Zlib|Unlicense|HPND|CC0|BSL-1\.0|"
    r"Boost|Historical Permission|Public Domain|ZPL|MIT-CMU|UPL|Bzip2|curl)\b",
    re.IGNORECASE,
)
LIBRARY = re.compile(r"\b(LGPL|Lesser General|MPL|Mozilla Public|EPL)\b|LGPL|MPL", re.IGNORECASE)
STRONG = re.compile(r"\b(A?GPL(v?\d|-\d|\b)|Affero|GNU General Public)", re.IGNORECASE)
NVIDIA = "NVIDIA's licence for parts that may be passed on with an application; CUDA set only"
NAMED = {
    "nvidia-*": NVIDIA,
    "cuda-*": NVIDIA,
    "intel-*": "Intel's licence for parts that may be passed on; torch's CPU build asks for it",
    "llama-models": "Meta's licence, with its notice; tests only",
    "quack-kernels": "Apache-2.0 by its licence file, though not by its metadata",
    "torchcodec": "BSD-3-Clause by its licence file, though not by its metadata",
}
"""Packages whose licence is neither, with why they may ride along; judged by their licence files."""


@dataclass(frozen=True, slots=True)
class Row:
    """A package of the page.

    Attributes:
        name: Canonical name.
        licence: As it says itself.
        sets: Locks that have it.
    """

    name: str
    licence: str
    sets: tuple[str, ...]

    @property
    def judgement(self) -> str:
        """Return why it fits, or an empty string where it does not."""
        if STRONG.search(self.licence) and not LIBRARY.search(self.licence) and not FREE.search(self.licence):
            return ""
        if LIBRARY.search(self.licence):
            return "used unchanged, as a library"
        if FREE.search(self.licence):
            return "free to pass on with its notice"
        return next((reason for name, reason in NAMED.items() if fnmatch.fnmatch(self.name, name)), "")


def read_locks() -> dict[str, tuple[str, ...]]:
    """Return the sets that have each package, by its name."""
    found: dict[str, list[str]] = {}
    for name in SETS:
        text = (REPO / "locks" / f"{name}.txt").read_text(encoding="utf-8")
        for package in re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE):
            found.setdefault(package, []).append(name)
    return {package: tuple(found[package]) for package in sorted(found)}


def read_page() -> dict[str, str]:
    """Return what the page says of each package."""
    if not PAGE.is_file():
        return {}
    return dict(
        re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \| c[a-z, ]+ \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    )


def read_installed() -> dict[str, str]:
    """Return the licence of each installed package."""
    found: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        files = [file for file in item.files or () if LICENCE_FILE.search(str(file)) and ".dist-info" in str(file)]
        texts = (file.read_text(encoding="utf-8") for file in files)
        found[canonicalize_name(item.metadata["Name"])] = read_licence(cast("Message", item.metadata), texts)
    return found


def ask_pip(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the licences of packages of the CUDA lock that are not installed, from what pip reports of them.

    Raises:
        InputError: pip could not.
    """
    lock = (REPO / "locks" / "cuda.txt").read_text(encoding="utf-8")
    lines = [line for line in lock.splitlines() if line.partition("==")[0] in names]
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["uv", "tool", "run", "--quiet", "--python", sys.executable, "pip", "install", "--quiet", "--dry-run"]
        command += ["--no-deps", "--ignore-installed", "--report", str(report), "--requirement", str(wanted)]
        done = subprocess.run([str(Path(sys.prefix) / "bin" / command[0]), *command[1:]], check=False)
        if done.returncode:
            raise InputError("pip could not report the packages of locks/cuda.txt (above). Check the network.")
        for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
            values, message = item["metadata"], Message()
            for key, header in (("license_expression", "License-Expression"), ("license", "License")):
                if values.get(key):
                    message.add_header(header, " ".join(values[key].split()))
            for line in values.get("classifier", []):
                message.add_header("Classifier", line)
            yield canonicalize_name(values["name"]), read_licence(message)


def collect_rows(*, is_online: bool) -> list[Row]:
    """Return every package of both locks with its licence."""
    locks, known = read_locks(), {**read_page(), **read_installed()}
    missing = [name for name in locks if name not in known]
    if missing and is_online:
        known.update(ask_pip(missing))
    return [Row(name, known.get(name, "unknown"), sets) for name, sets in locks.items()]


def render_page(rows: list[Row]) -> str:
    """Return docs/licences.md."""
    lines = [
        "# Licences of what the locks bring",
        "",
        "Written by `make licences` from the packages' own metadata; Loam itself is Apache-2.0. The texts are in each",
        "bundle, in licences/third-party.txt, beside the notices that models ask for. Of a choice the freer is taken.",
        "",
        "| package | licence, as it says itself | locks | why it may ride along |",
        "|---|---|---|---|",
        *(_render_row(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _render_row(row: Row) -> str:
    cells = (row.name, row.licence.replace("|", "/"), ", ".join(row.sets), row.judgement or "NOT JUDGED")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """List, judge, and write where it is asked for."""
    words = set(sys.argv[1:])
    if words - {"write=true", "online=true"}:
        raise ConfigError(f"wanted [write=true] [online=true], found {' '.join(sys.argv[1:])}.")
    configure_logging(level="WARNING")
    rows = collect_rows(is_online="online=true" in words)
    if "write=true" in words:
        write_file(PAGE, render_page(rows))
        print(f"wrote {PAGE.relative_to(REPO)}: {len(rows)} packages")
    odd = [f"{row.name} ({row.licence})" for row in rows if not row.judgement]
    if odd:
        raise ContractError(
            f"wanted a licence that fits for every package, found {', '.join(odd)}. Judge each in NAMED of "
            "scripts/licences.py, or do without the package."
        )
    print(f"{len(rows)} packages, all of them with a licence that fits")


if __name__ == "__main__":
    run_command(main)
