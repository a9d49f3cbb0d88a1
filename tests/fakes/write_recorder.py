"""Records every path that this process writes to, makes, renames or removes, and every file there is (promise H3).

Python's audit events see what Python code does; a listing with hashes sees what libraries in C did as well.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.layout import sha256_bytes

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),),
}  # fmt: skip
"""For each event: which arguments are the paths, and which are the descriptors of the folders that they start from."""


class WriteRecorder:
    """Records while it is on."""

    def __init__(self) -> None:
        """Listen to this process for good: an audit hook cannot be taken out again."""
        self.paths: list[Path] = []
        self._is_on = False
        sys.addaudithook(self._audit)

    @contextmanager
    def record(self) -> Iterator[list[Path]]:
        """Yield the list of paths, which grows until the block ends."""
        self.paths, self._is_on = [], True
        try:
            yield self.paths
        finally:
            self._is_on = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event == "open":
            path, mode, flags = arguments
            is_writing = set("wax+") & set(mode or "") or (isinstance(flags, int) and flags & _WRITING)
            if is_writing and not isinstance(path, int):
                self._add(path)
        for place, folder in _CHANGES.get(event, ()):
            if not isinstance(arguments[place], int):
                self._add(arguments[place], -1 if folder is None else arguments[folder])

    def _add(self, path: Any, folder: int = -1) -> None:
        start = Path.cwd() if folder < 0 else Path(f"/proc/self/fd/{folder}").readlink()
        self.paths.append(Path(os.path.normpath(start / os.fsdecode(path))))


def list_tree(folder: Path, left_out: Path) -> dict[str, str]:
    """Return every path below a folder but for one folder: kind, mode and, of a file, the hash of its bytes."""
    found = {}
    for path in folder.rglob("*"):
        if path == left_out or left_out in path.parents:
            continue
        status = path.lstat()
        content = sha256_bytes(path.read_bytes()) if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = f"{status.st_mode:o} {status.st_mtime_ns} {content}"
    return found
