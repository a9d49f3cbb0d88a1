"""Ask for known flaws of every locked package, through pip-audit: python scripts/audit.py. Needs a network.

pip-audit runs in an environment of its own (uv tool run) and gets names and versions only. Ends with 6 where a flaw is
known that locks/known-flaws.txt does not list. A flaw is listed there by its id, with the reason why Loam is not
touched:

    PYSEC-2026-1  # package: why the flawed code is never reached
"""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from core.config import run_command
from core.errors import ContractError, InputError

REPO = Path(__file__).resolve().parent.parent
SETS = ("cpu", "cuda")
LISTED = REPO / "locks" / "known-flaws.txt"


@dataclass(frozen=True, slots=True)
class Flaw:
    """A known flaw of a locked package.

    Attributes:
        package: Its name and version.
        ids: Of the flaw, and its other names.
        fixed: Versions without it.
    """

    package: str
    ids: tuple[str, ...]
    fixed: tuple[str, ...]


def read_listed() -> dict[str, str]:
    """Return the flaws that do not touch Loam, each with its reason."""
    lines = LISTED.read_text(encoding="utf-8").splitlines() if LISTED.is_file() else []
    return dict(re.findall(r"^([A-Z][A-Z0-9-]+[a-zA-Z0-9-]*)\s+# (.+)$", "\n".join(lines), re.MULTILINE))


def read_names() -> list[list[str]]:
    """Return `name==version` of the CPU lock, and of the CUDA lock what is not in it.

    The local part of a version (`+cpu`) is left out: databases do not know it.
    """
    found: list[list[str]] = []
    for name in SETS:
        text = (REPO / "locks" / f"{name}.txt").read_text(encoding="utf-8")
        lines = re.findall(r"^([a-z0-9-]+==[^\s+]+)", text, re.MULTILINE)
        found.append([line for line in lines if not found or line not in found[0]])
    return found


def ask(names: list[str]) -> list[Flaw]:
    """Return what pip-audit knows.

    Raises:
        InputError: It could not run or reach its database, or that was silent about a package.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(names) + "\n", encoding="utf-8")
        command = [
            str(REPO / ".venv" / "bin" / "uv"),
            "tool",
            "run",
            "pip-audit",
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
        ]
        command += ["--progress-spinner", "off", "--output", str(report), "--requirement", str(wanted)]
        done = subprocess.run(command, env=os.environ, stderr=subprocess.PIPE, text=True, check=False)
        if not report.is_file():  # without a network it ends in 80 lines of traceback: the last says why
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1].strip()
            raise InputError(
                f"wanted what is known of {len(names)} packages, found no answer: pip-audit ended with "
                f"{done.returncode} ({said}). Nothing was checked. Run make audit on this commit where a network "
                "reaches the package index."
            )
        rows = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    silent = [row["name"] for row in rows if "skip_reason" in row]
    if silent:
        raise InputError(
            f"wanted an answer about each of {len(rows)} packages, found none about {len(silent)}: {silent[:5]}. "
            "This index has no database of flaws: run it where pip-audit reaches one."
        )
    return [
        Flaw(f"{row['name']} {row['version']}", (flaw["id"], *flaw["aliases"]), tuple(flaw["fix_versions"]))
        for row in rows
        for flaw in row.get("vulns", [])
    ]


def main() -> None:
    """Ask, leave out what is listed, and name the rest."""
    names, listed = read_names(), read_listed()
    flaws = [flaw for part in names for flaw in ask(part)]
    for flaw in flaws:
        reason = next((listed[one] for one in flaw.ids if one in listed), "")
        print(
            f"{flaw.package}: {flaw.ids[0]}, fixed in {', '.join(flaw.fixed) or 'no version'}; {reason or 'not listed'}"
        )
    open_ones = [flaw for flaw in flaws if not listed.keys() & set(flaw.ids)]
    print(f"{sum(map(len, names))} packages, {len(flaws)} known flaws, {len(open_ones)} of them not listed")
    if open_ones:
        raise ContractError(
            f"wanted every flaw listed in locks/known-flaws.txt, found {', '.join(flaw.ids[0] for flaw in open_ones)}. "
            "Take a fixed version (UPGRADE=1 make lock), or list it with the reason why Loam is not touched."
        )


if __name__ == "__main__":
    run_command(main)
