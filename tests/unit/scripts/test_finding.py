"""What the doctor's two halves share: a check that the system stops is a finding among what it said before."""

import errno
from collections.abc import Iterator
from pathlib import Path

from scripts.finding import AGAIN, Finding, tell_refusals


def test_what_was_said_before_the_system_refused_counts(tmp_path: Path) -> None:
    def check() -> Iterator[str]:
        yield "two files"
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "third"))

    said, found = tell_refusals("models", check(), tmp_path)
    assert said == "two files"
    assert isinstance(found, Finding)
    assert (found.check, found.subject, found.remedy) == ("models", str(tmp_path), AGAIN)
    assert str(tmp_path / "third") in found.fault
