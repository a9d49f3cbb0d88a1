"""Large arrays that lie on disk while an index is made: the system may take their memory back whenever it needs it.

Their file has no name, so that it goes with the array or the process, and its space is claimed before anything is
written: where there is none, memory has to do. It lies where `TMPDIR` says. Does not know what the arrays hold.
"""

import math
import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

SPILLED_FROM_BYTES = 32 * 2**20
"""Arrays from this size on lie on disk."""


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of any content, on disk where it is large and there is space."""
    kind = np.dtype(dtype)
    size_bytes = math.prod(shape) * kind.itemsize
    if size_bytes < SPILLED_FROM_BYTES:
        return np.empty(shape, dtype=kind)
    try:
        with tempfile.TemporaryFile(prefix="loam-") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # without it a full disk would kill the process later
            memory = mmap.mmap(file.fileno(), size_bytes)
    except OSError:
        return np.empty(shape, dtype=kind)
    return np.frombuffer(memory, dtype=kind).reshape(shape)


def release(array: NDArray[Any]) -> None:
    """Let go of the memory of an array on disk; what it holds stays, and is read again when it is asked for."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
