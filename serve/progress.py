"""What is shown while something takes long: one changing line on a terminal, a plain line now and then elsewhere.

Writes to standard error. Does not know what is started or counted.
"""

import os
import sys
import time

PLAIN_INTERVAL_S = 5.0


class StartProgress:
    """Shows how the engine's start goes."""

    def __init__(self) -> None:
        """Begin."""
        self._is_terminal = sys.stderr.isatty()
        self._shown_s = 0.0

    def show(self, seconds: float, line: str) -> None:
        """Show the seconds since the start and the last line of the engine's log."""
        text = f"starting     vLLM, {seconds:.0f} s  {line[-100:]}"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[2K{text[: max(20, os.get_terminal_size(2).columns - 1)]}")
            sys.stderr.flush()
        elif seconds - self._shown_s >= PLAIN_INTERVAL_S:
            self._shown_s = seconds
            say(text)

    def end(self, text: str) -> None:
        """Replace the changing line by a last one."""
        if self._is_terminal:
            sys.stderr.write("\r\x1b[2K")
        say(text)


def say(text: str) -> None:
    """Tell people; machines read the log lines, which are JSON."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class CountProgress:
    """Shows how many of a known number are done."""

    def __init__(self, text: str, total: int) -> None:
        """Begin.

        Args:
            text: What is counted, as `asking       adapter`.
            total: How many there are.
        """
        self._is_terminal = sys.stderr.isatty()
        self._text, self._total, self._done = text, total, 0
        self._shown_at = time.monotonic()

    def advance(self) -> None:
        """Count one more, and show it when it is time."""
        self._done += 1
        line = f"{self._text}: {self._done}/{self._total}"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[2K{line}" if self._done < self._total else "\r\x1b[2K")
            sys.stderr.flush()
        elif time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            say(line)
