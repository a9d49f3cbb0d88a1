"""Ctrl-C and SIGTERM: noted at once, acted on where a run can be left in good order, by all its processes together.

Does not know what leaving in good order takes; the recorder asks the Trainer to save and to stop.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from train.launch import is_launched

logger = logging.getLogger(__name__)

SAME_SIGNAL_S = 5.0
"""A terminal and torch's launcher both pass Ctrl-C on: within this time the second one is the first one's echo."""


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that the step under way ends before the run does; a second one ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; the second time, raise."""
        now = time.monotonic()
        if self.received is not None:
            if is_launched() and now - self._received_at < SAME_SIGNAL_S:
                return
            raise KeyboardInterrupt
        self.received, self._received_at = number, now
        logger.warning(
            "%s: ending after this step, with a checkpoint; once more ends at once", signal.Signals(number).name
        )

    def is_agreed(self) -> bool:
        """Whether any process of the run has received a signal; each must ask at the same places.

        A signal reaches the processes of a run at different steps, and one that stops alone leaves the others waiting.
        """
        if is_launched():
            import torch
            from torch import distributed

            on_cards = distributed.get_backend() == "nccl"
            number = torch.tensor(self.received or 0, device="cuda" if on_cards else "cpu")
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
            self.received = int(number.item()) or None
        return self.received is not None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen while the body runs."""
        before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
