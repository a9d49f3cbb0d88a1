"""Spilled arrays hold what was written, also after their memory was let go, and memory has to do on a full disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from retrieval import spill
from retrieval.spill import allocate, release


def read_resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_large_array_holds_no_memory_once_it_is_let_go() -> None:
    array = allocate((40, 2**20), np.uint8)
    array[:] = np.arange(40, dtype=np.uint8)[:, None]
    full = read_resident_mib()
    release(array)
    assert read_resident_mib() < full - 30
    assert (array == np.arange(40)[:, None]).all()
    array[3] = 7  # and can still be written
    release(array[3:])
    assert (array[3] == 7).all()


def test_a_small_array_is_an_ordinary_one() -> None:
    array = allocate((3, 2), np.float32)
    assert array.base is None
    release(array)


def test_a_full_disk_is_answered_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "SPILLED_FROM_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    array = allocate((5,), np.int64)
    assert array.base is None
    assert array.shape == (5,)


def test_nothing_is_left_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = allocate((40, 2**20), np.uint8)
    array[:] = 1
    assert list(tmp_path.iterdir()) == []
