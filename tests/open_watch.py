"""Tells who opens the files of a folder: the system counts every opening, Python's audit events name the reader.

inotify sees each opening by this process or another, from C as well, a mapping included, since a file must be open to
be mapped. The audit events see those that Python makes, and the stack tells whether a library asked for it. Where the
two counts agree, nothing went past the second.
"""

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

IN_OPEN = 0x20
IN_CLOSE = 0x08 | 0x10
"""Watched too, because the system makes one event of two that are alike and follow each other."""
IN_Q_OVERFLOW = 0x4000
IN_ISDIR = 0x40000000
EVENT = struct.Struct("iIII")
LIBRARIES = ("numpy", "faiss")


@dataclass
class Openings:
    """What happened to the files of one folder, by file name.

    Attributes:
        folder: The folder.
        descriptor: inotify's.
        by_system: How often each was opened.
        by_python: How often of these through Python.
        by_library: How often of these on behalf of numpy or FAISS.
    """

    folder: str
    descriptor: int
    by_system: Counter[str] = field(default_factory=Counter)
    by_python: Counter[str] = field(default_factory=Counter)
    by_library: Counter[str] = field(default_factory=Counter)

    def settle(self) -> None:
        """Take in what the system has counted; it queues some thousands of events and drops the rest."""
        while True:
            try:
                content = os.read(self.descriptor, 1 << 20)
            except BlockingIOError:
                return
            place = 0
            while place < len(content):
                _, mask, _, length = EVENT.unpack_from(content, place)
                assert not mask & IN_Q_OVERFLOW, "events were dropped"
                name = content[place + EVENT.size : place + EVENT.size + length].rstrip(b"\0").decode()
                place += EVENT.size + length
                if name and mask & IN_OPEN and not mask & IN_ISDIR:
                    self.by_system[name] += 1


_watched: list[Openings] = []
_installed: list[bool] = []


@contextmanager
def watch_openings(folder: Path) -> Iterator[Openings]:
    """Watch a folder until the block ends; the system's counts are there afterwards, or after `settle`."""
    if not _installed:  # an audit hook cannot be taken out again
        sys.addaudithook(_audit)
        _installed.append(True)
    system = ctypes.CDLL(None, use_errno=True)
    descriptor = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    openings = Openings(str(folder), descriptor)
    try:
        assert system.inotify_add_watch(descriptor, os.fsencode(folder), IN_OPEN | IN_CLOSE) >= 0
        _watched.append(openings)
        try:
            yield openings
        finally:
            _watched.remove(openings)
            openings.settle()
    finally:
        os.close(descriptor)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or event != "open" or not isinstance(arguments[0], str | os.PathLike):
        return
    folder, name = os.path.split(os.fspath(arguments[0]))
    for openings in _watched:
        if openings.folder == folder:
            openings.by_python[name] += 1
            openings.by_library[name] += _is_for_library(sys._getframe())


def _is_for_library(frame: FrameType | None) -> bool:
    """Tell whether a library is anywhere among the callers."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).split(".")[0] in LIBRARIES:
            return True
        frame = frame.f_back
    return False
