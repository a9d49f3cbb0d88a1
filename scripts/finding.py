"""What the doctor says: a fault with its remedy. Does not know how faults are found."""

from dataclasses import dataclass


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
