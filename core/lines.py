"""Files of lines that only grow, such as a run's events or saved answers: each line whole on disk, or not there.

Does not know what a line means.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from core.errors import describe_os_error

BLOCK_BYTES = 2**14
"""What is read at once of a file that is read backwards."""


class LineWriter:
    """Appends lines to a file and flushes each to disk, so that a kill loses at most the line being written."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending; an unfinished last line of a killed process is cut off first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_unfinished_line(path)
        self._path, self._file = path, path.open("ab", buffering=0)

    def is_empty(self) -> bool:
        """Tell whether the file holds no line yet."""
        return self._file.seek(0, os.SEEK_END) == 0

    def write(self, line: str) -> None:
        """Append one line.

        Args:
            line: Without a line end, and with none inside.

        Raises:
            StorageFull: The disk is full; the file is as it was before.
        """
        before = self._file.seek(0, os.SEEK_END)
        try:
            self._write_all((line + "\n").encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(before)  # half a line would spoil the next one
            raise describe_os_error(error, f"write {self._path}") from error

    def _write_all(self, content: bytes) -> None:
        """Write every byte: a nearly full disk takes some, and says so only when asked for the rest."""
        while content:
            content = content[self._file.write(content) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, whatever happened."""
        self.close()


def read_whole_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file in order, line ends included; a half-written last line is left out.

    Args:
        path: A missing file has no lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # else it may end in the middle of a character, too
                yield line.decode()


def read_lines_back(path: Path, end: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield place and text of whole lines, the last first, line ends included; reads no more of the file than that.

    Args:
        path: A missing file has no lines.
        end: Only lines before this place, in bytes, at which a line begins; None: all whole ones.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        start = find_line_start(file, file.seek(0, os.SEEK_END)) if end is None else end
        lines = b""  # read and not yielded; they begin at `start`
        while start:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            lines = file.read(size) + lines
            length = len(lines)
            while (cut := lines.rfind(b"\n", 0, length - 1)) >= 0:
                yield start + cut + 1, lines[cut + 1 : length].decode()
                length = cut + 1
            lines = lines[:length]
        if lines:
            yield 0, lines.decode()


def find_line_start(file: BinaryIO, place: int) -> int:
    """Return where the line begins that holds a byte, in bytes; for the file's end, where its last whole line ends.

    Args:
        file: Its position is moved.
        place: The byte's, from 0 to the file's size.
    """
    while place:
        start = max(0, place - BLOCK_BYTES)
        file.seek(start)
        cut = file.read(place - start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        place = start
    return 0


def _cut_unfinished_line(path: Path) -> None:
    """Truncate a file after its last newline, so that the next line starts on a line of its own."""
    if not path.exists():
        return
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = find_line_start(file, size)
    if end < size:
        os.truncate(path, end)
