"""A run's folder for what it needs only while it lasts: made by the first process of a machine, shared by its others.

Does not know what lies in it.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.2


@contextmanager
def hold_scratch(folder: Path) -> Iterator[Path]:
    """Give a run a folder, and remove it when the run is over, however it ended.

    Args:
        folder: Made anew; what an earlier run has left there goes, unless other machines may be using it.

    Yields:
        A folder below it that the processes of this run on this machine share.
    """
    # The launcher is the parent of all processes of a machine, so that its number tells this start from an earlier one.
    own = folder / f"{os.environ.get('GROUP_RANK', '0')}-{os.getppid()}"
    is_alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    if is_first_here():
        shutil.rmtree(folder if is_alone else own, ignore_errors=True)
        own.mkdir(parents=True)
    try:
        yield own
    finally:
        if is_first_here():
            shutil.rmtree(folder if is_alone else own, ignore_errors=True)


def is_first_here() -> bool:
    """Whether this process writes for the others on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def wait_for(path: Path) -> None:
    """Wait until the first process of this machine has written a file; its launcher ends all when it fails."""
    while not path.exists():
        time.sleep(POLL_S)
