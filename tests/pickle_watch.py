"""Remembers every class that a pickle names while it is on (promise A2): there is none in gateway and ingestion.

Python's own audit event sees every unpickler of this process, from any library. Does not see child processes; those of
the journey in tests/integration/test_airgap.py are watched by scripts/closed_room.
"""

import sys
from typing import Any


class PickleWatch:
    """Remembers what unpicklers look up while `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.found: list[str] = []

    def install(self) -> None:
        """Listen to this process for good: an audit hook cannot be taken out again."""
        sys.addaudithook(self._audit)

    def take_found(self) -> list[str]:
        """Return what was looked up since the last call, and forget it."""
        found, self.found = self.found, []
        return found

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "pickle.find_class":
            self.found.append(f"{arguments[0]}.{arguments[1]}")
