"""Reports as they lie on disk: which there are, and their files. Read only; whoever evaluates writes them.

A report is a folder below data/reports with a report.json. They are made at the command line, so they are `local`'s,
and administrators see them. Does not know what is in them.
"""

from dataclasses import dataclass
from pathlib import Path

from core.errors import NotFound
from core.layout import NAME_PATTERN, DataDir
from serve.owners import LOCAL, Caller

MAIN_FILE = "report.json"
SHOWN = frozenset({".json", ".jsonl", ".html", ".csv", ".md", ".png", ".svg"})


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        name: Its folder's name.
        created_at: Unix seconds of its main file.
        files: Name and size in bytes of each file that is shown.
    """

    name: str
    created_at: int
    files: dict[str, int]


def list_reports(data: DataDir, caller: Caller) -> list[Report]:
    """Return the reports that a caller may read, newest first."""
    if not may_read(caller) or not data.reports.is_dir():
        return []
    folders = [folder for folder in data.reports.iterdir() if NAME_PATTERN.fullmatch(folder.name)]
    found = [read_report(folder) for folder in folders if (folder / MAIN_FILE).is_file()]
    return sorted(found, key=lambda report: (-report.created_at, report.name))


def may_read(caller: Caller) -> bool:
    """Tell whether reports are the caller's."""
    return caller.owner == LOCAL or caller.is_admin


def read_report(folder: Path) -> Report:
    """Return what a folder holds."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if is_shown(path)}
    return Report(folder.name, int((folder / MAIN_FILE).stat().st_mtime), files)


def is_shown(path: Path) -> bool:
    """Tell whether a file may be read through the API: a plain one, of a known kind."""
    return path.is_file() and not path.is_symlink() and path.suffix in SHOWN and not path.name.startswith(".")


def find_file(data: DataDir, caller: Caller, name: str, file: str) -> Path:
    """Return a report's file.

    Raises:
        NotFound: There is none, or it is another's.
    """
    for report in list_reports(data, caller):
        if report.name == name and file in report.files:
            return data.reports / name / file
    raise NotFound(f"report {name!r}: it has no file {file!r}, or there is no such report.", param="report")
