"""What the doctor says: a fault with its remedy. Does not know how faults are found."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.errors import describe_os_error

AGAIN = "Mend what is said, and run this again."
"""The remedy where the words of the fault say what to mend."""

Said = TypeVar("Said")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: Which check found it.
        subject: What it is about: a chunk, a file, a folder, a package.
        fault: What was found.
        remedy: What to do: a command where there is one.
        is_mended: Whether it has been put right.
    """

    check: str
    subject: str
    fault: str
    remedy: str
    is_mended: bool = False


def tell_refusals(name: str, check: Iterable[Said], place: Path) -> Iterator[Said | Finding]:
    """Yield what a check says, and a finding where the system refuses it a file or a program, so that others go on.

    Args:
        name: The check's name.
        check: What it says, in its order.
        place: The data directory, which the finding is about.
    """
    try:
        yield from check
    except OSError as error:
        yield Finding(name, str(place), describe_os_error(error, f"check the {name}").message, AGAIN)
