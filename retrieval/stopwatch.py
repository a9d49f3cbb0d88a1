"""Milliseconds of the stages of a search. Does not know what is done in them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the milliseconds of each stage; runs from when it is made."""

    def __init__(self) -> None:
        """Start."""
        self.timings_ms: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the body to a stage."""
        start = time.perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def finish(self) -> dict[str, float]:
        """Return the milliseconds by stage, and `total` since the start."""
        total = (time.perf_counter() - self._start) * 1e3
        return {name: round(value, 3) for name, value in {**self.timings_ms, "total": total}.items()}
