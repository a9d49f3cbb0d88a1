"""Keeping a store in step with a folder: a sync whenever the folder has changed and is quiet again.

Events of the file system say when to look; what has changed is found by a sync, so that a lost event costs time and
nothing else. A folder that vanishes (a drive that is not mounted) removes nothing: it is waited for. Does not know what
a sync does.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import watchfiles

from core.errors import Conflict, InputError, LoamError, NotFound, StorageFull
from core.layout import DataDir
from retrieval.config import RetrievalConfig, WatchConfig
from retrieval.embedding import Embedder
from retrieval.ingest import IngestReport
from retrieval.sync import SyncRules, sync

logger = logging.getLogger(__name__)

TICK_S = 1.0
"""How often it is seen whether the folder is still there and whether to stop."""
LONGEST_BURST = 20
"""A folder that is never quiet is synced all the same after this many times the debounce."""


class _Stopped(Exception):
    """The process was told to stop while it was syncing."""


def watch(
    data: DataDir,
    store_name: str,
    source: Path,
    *,
    embedder: Embedder,
    config: RetrievalConfig,
    tell: Callable[[IngestReport], None],
    stop: threading.Event,
) -> None:
    """Sync a store with a folder now and after each change, until told to stop.

    Args:
        data: The data directory.
        store_name: Made if it does not exist.
        source: The folder.
        embedder: It must be the one that made the store's vectors.
        config: Says how to cut, to parse and to watch.
        tell: Called with what a sync did, where it did something.
        stop: Set from a signal or another thread; what was committed stays, and the next start goes on from there.

    Raises:
        Conflict: The store's vectors are of another embedder.
        ContractError: Something on disk is damaged.
    """

    def check_stop(_: IngestReport) -> None:
        if stop.is_set():
            raise _Stopped

    def bring_up_to_date() -> None:
        try:
            report = sync(
                data,
                store_name,
                source,
                embedder=embedder,
                chunking=config.chunking,
                parsing=config.parsing,
                progress=check_stop,
                rules=SyncRules(verify=config.verify, language=config.language),
            )
        except (NotFound, InputError, StorageFull, Conflict) as error:
            if not _is_passing(error):
                raise
            logger.warning("%s Nothing was removed; it is tried again.", error.message)
            return
        if report.ingested or report.renamed or report.removed:
            tell(report)

    try:
        while not stop.is_set():
            for _ in wait_for_changes(source, data, config.watch, stop):
                bring_up_to_date()
            stop.wait(TICK_S)
    except _Stopped:
        logger.warning("stopped during a sync; the next start goes on from there")


def _is_passing(error: LoamError) -> bool:
    """Tell an error that may go away by itself from one that a person must mend."""
    return not isinstance(error, Conflict) or error.retry_after_s is not None


def wait_for_changes(source: Path, data: DataDir, config: WatchConfig, stop: threading.Event) -> Iterator[None]:
    """Yield at once, after each burst of changes and every `interval_s`; end when the folder vanishes or on stop."""
    place = _identify(source)
    if place is None:
        logger.warning("source: nothing is at %s. Waiting for it; nothing is removed meanwhile.", source)
        while _identify(source) is None and not stop.wait(TICK_S):
            pass
        return
    own = str(data.root.resolve())
    step_ms = int(config.debounce_s * 1000)
    changes = watchfiles.watch(
        source,
        watch_filter=lambda _, path: path != own and not path.startswith(own + "/"),
        debounce=LONGEST_BURST * step_ms,
        step=step_ms,
        stop_event=stop,
        rust_timeout=int(min(TICK_S, config.interval_s) * 1000),
        yield_on_timeout=True,
        force_polling=config.is_polled,
        ignore_permission_denied=True,
    )
    synced_at: float | None = None
    for changed in changes:  # the first comes by timeout or change: from then on no event is missed
        if _identify(source) != place:
            return
        if changed or synced_at is None or time.monotonic() - synced_at >= config.interval_s:
            yield
            synced_at = time.monotonic()


def _identify(source: Path) -> tuple[int, int] | None:
    """Return which folder lies at a path now, None where there is none."""
    try:
        status = source.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if source.is_dir() else None


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop = threading.Event()

    def ask_to_stop(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, previous[number])

    previous = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
