"""Named places in the code where a test may have the process killed, to prove what a kill there leaves behind.

    LOAM_TEST_BUILD=1 LOAM_FAILPOINT=checkpoint.synced:3 python train/run.py …

kills the process with SIGKILL the third time that it comes to `checkpoint.synced`. Without both variables nothing
happens. Does not know what the places mean; each is named where it stands.
"""

import os
import signal
from collections import Counter

SWITCH = "LOAM_TEST_BUILD"
NAMED = "LOAM_FAILPOINT"
_passed: Counter[str] = Counter()


def reach(name: str) -> None:
    """Come to a named place; there the process dies if a test asked for it.

    Args:
        name: What is being done and how far it is, as `checkpoint.synced`.
    """
    wanted = os.environ.get(NAMED) if os.environ.get(SWITCH) == "1" else None
    if wanted is None:
        return
    _passed[name] += 1
    place, _, times = wanted.partition(":")
    if place == name and _passed[name] == int(times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
