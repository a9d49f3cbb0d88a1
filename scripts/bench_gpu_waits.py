"""No step of training may wait for its card: scripts/bench_gpu.py runs three and refuses whatever would.

A card that runs dry between forward and backward pass computes nothing until its next kernel has been handed over. On a
card torch itself refuses (its sync debug mode); the twin on a CPU refuses the operations that would wait on a card:
those whose result, or its size, must be known to Python. What copies unpinned memory to a card only the card tells.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.bench_gpu_steps import Wrong

TOP = Path(__file__).resolve().parent.parent
OURS = {TOP / folder for folder in ("train", "scripts")}
WARM_UP, FREE_STEPS = 2, 3
"""Steps that may wait, because they compile and take memory, and those after them, which may not."""
WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
NEW_FROM_PYTHON = torch.ops.aten.lift_fresh.default
"""What torch.tensor([…]) does: on a card it copies from memory that the card cannot read by itself."""


class WouldWait(RuntimeError):
    """An operation would make Python wait for a card."""


class NoWaits(TorchDispatchMode):
    """Refuses operations that would wait on a card, wherever they run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that does not wait."""
        options = kwargs or {}
        if would_wait(func, args, options):
            raise WouldWait(str(func))
        return func(*args, **options)


def would_wait(operation: Any, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether Python must know an operation's numbers before it can go on."""
    if operation is NEW_FROM_PYTHON:
        return True
    if operation.overloadpacket in INDEXING:  # only a mask has to be counted
        return any(one is not None and one.dtype in {torch.bool, torch.uint8} for one in args[1])
    if not WAITING_TAGS & set(operation.tags):
        return False
    if operation is torch.ops.aten.repeat_interleave.Tensor:
        return options.get("output_size") is None
    return True


@contextmanager
def forbid_waits(device: torch.device) -> Iterator[None]:
    """Make whatever waits for a device raise an error of its own kind."""
    if device.type != "cuda":
        with NoWaits():  # type: ignore[no-untyped-call]
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def name_waits() -> Iterator[None]:
    """Say which line of ours waited.

    Raises:
        Wrong: One did.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, WouldWait) and "synchronizing" not in str(error):
            raise
        raise Wrong(f"{find_line(error)} waits for the card: {str(error).splitlines()[0]}") from error


def find_line(error: BaseException) -> str:
    """Return the innermost line of ours that an error came through, as file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if Path(one.filename).parent in OURS and Path(one.filename) != Path(__file__)]
    return f"{Path(ours[-1].filename).relative_to(TOP)}:{ours[-1].lineno}" if ours else "a library"
