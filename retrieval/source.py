"""The files of a source folder, and the stamp that tells without reading a file that it has not changed.

Hidden files, links and the data directory itself are left out. A document is named after its file; what cannot be seen
or stored in a name is spelled out (core/spelling.py). Does not know what the files hold or what a store has.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError, NotFound, describe_os_error
from core.layout import DataDir
from core.spelling import spell

SETTLED_AFTER_NS = 2 * 10**9
"""A file changed less than this before it was looked at may change again within the same tick of its clock."""
MAX_INODE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file's directory entry says; a file whose stamp is the same is taken to hold the same bytes.

    Attributes:
        size_bytes: Of the file.
        modified_ns: When it was changed, nanoseconds since 1970; 0: not known.
        inode: Its number on the file system; 0: it was changed too lately for its stamp to be relied on.
    """

    size_bytes: int
    modified_ns: int
    inode: int

    @property
    def is_settled(self) -> bool:
        """Whether an equal stamp means equal bytes."""
        return self.inode != 0


UNKNOWN_STAMP = FileStamp(0, 0, 0)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to ingest.

    Attributes:
        path: Where it lies.
        name: Path below the source, with "/", spelled; the document's name.
        stamp: Size, time and inode, as seen when the source was listed.
    """

    path: Path
    name: str
    stamp: FileStamp


def list_files(source: Path, data: DataDir) -> list[SourceFile]:
    """Return the files of a source in order; hidden ones, links and the data directory itself are left out.

    Raises:
        NotFound: The source does not exist.
        InputError: The source holds no files.
    """
    if source.is_file():
        return [SourceFile(source, spell(source.name), _read_stamp(source.stat(), time.time_ns()))]
    files = list_folder(source, data)
    if not files:
        raise InputError(
            f"source: wanted files in {source}, found none (hidden files and links are left out). Check the path.",
            param="source",
        )
    return files


def list_folder(source: Path, data: DataDir) -> list[SourceFile]:
    """Return the files of a folder in order, possibly none.

    Raises:
        NotFound: The folder does not exist.
        InputError: A folder in it cannot be read.
    """
    if not source.is_dir():
        raise NotFound(f"source: wanted a file or folder, found nothing at {source}. Check the path.", param="source")
    own = data.root.stat() if data.root.is_dir() else None
    is_own = (own.st_dev, own.st_ino) if own else None
    return list(_walk(str(source), "", is_own, time.time_ns()))


def _walk(folder: str, prefix: str, own: tuple[int, int] | None, now_ns: int) -> Iterator[SourceFile]:
    """Yield the files of a folder, then those of the folders in it, each by name."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        if prefix and isinstance(error, FileNotFoundError):
            return  # removed while the source was being listed
        raise describe_os_error(error, "read the source") from error
    folders = []
    for entry in seen:
        try:
            if entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False) if own else None
                if status is None or (status.st_dev, status.st_ino) != own:
                    folders.append(entry)
            elif entry.is_file(follow_symlinks=False):
                stamp = _read_stamp(entry.stat(follow_symlinks=False), now_ns)
                yield SourceFile(Path(entry.path), prefix + spell(entry.name), stamp)
        except FileNotFoundError:
            continue
    for entry in folders:
        yield from _walk(entry.path, f"{prefix}{spell(entry.name)}/", own, now_ns)


def _read_stamp(status: os.stat_result, now_ns: int) -> FileStamp:
    is_settled = abs(now_ns - status.st_mtime_ns) > SETTLED_AFTER_NS
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino & MAX_INODE if is_settled else 0)
