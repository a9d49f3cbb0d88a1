"""The archive: the gateway's door to its own rows and files. Runs blocking calls in a bounded pool of threads.

Does not know what the rows mean: keys.py, uploads.py and vector_stores.py do.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from sqlalchemy import Engine

from core.layout import DataDir
from retrieval.database import open_database

WORKERS = 4
"""Calls at the same time; SQLite writes one transaction at a time anyway."""

P = ParamSpec("P")
T = TypeVar("T")


class Archive:
    """The database and the data directory of one gateway."""

    def __init__(self, data: DataDir, max_file_bytes: int) -> None:
        """Open the database.

        Args:
            data: The data directory.
            max_file_bytes: Largest file that is kept.

        Raises:
            ContractError: The database is damaged or newer.
        """
        self.data = data
        self.max_file_bytes = max_file_bytes
        self.engine: Engine = open_database(data.database)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="archive")

    async def run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return what a call returns that would hold up the event loop."""
        bound = functools.partial(call, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._pool, bound)

    def close(self) -> None:
        """Wait for running calls, then close the database."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.engine.dispose()
