"""The library: the gateway's door to retrieval. Runs retrieval's blocking calls in a bounded pool of threads.

Does not know how anything is found (retrieval/ does), nor what an answer is.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from retrieval.embedding import Embedder
from retrieval.filters import Filter
from retrieval.ranking import AS_CONFIGURED, Ranking
from retrieval.searcher import Searcher, SearchResult
from retrieval.store import Passage
from retrieval.vectors import EmbedderIdentity

WORKERS = 4
"""Searches at the same time; more would only fight for the cores."""

T = TypeVar("T")


class Library:
    """The stores and the embedder of one gateway."""

    def __init__(
        self, searcher: Searcher, embedder_name: str, time_search: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        """Use an open searcher; who opened it closes it, after this.

        Args:
            searcher: Retrieval on this data directory.
            embedder_name: What /v1/embeddings calls the embedder.
            time_search: Told the milliseconds of every search, by stage.
        """
        self.embedder_name = embedder_name
        self._searcher = searcher
        self.time_search = time_search
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="library")

    async def search(
        self,
        stores: Sequence[str],
        query: str,
        k: int,
        filters: Filter | None = None,
        ranking: Ranking = AS_CONFIGURED,
    ) -> SearchResult:
        """Return the best k passages of some stores; with filters, of the documents that they let through."""
        found = await self.run(self._searcher.search, stores, query, k, filters, ranking)
        if self.time_search is not None:
            self.time_search(found.timings_ms)
        return found

    def open_embedder(self) -> Embedder:
        """Return the embedder, loaded at the first call; blocks."""
        return self._searcher.embedder

    def read_identity(self) -> EmbedderIdentity:
        """Return which embedder new stores' vectors are of; blocks."""
        return self._searcher.embedder.identity

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors; (texts, dimension)."""
        return await self.run(self._searcher.embed_texts, texts)

    async def rerank(self, query: str, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], int]:
        """Return each text's score, (texts,) 0 to 1, and the tokens that were read."""
        return await self.run(self._searcher.rerank_texts, query, texts)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return each text's length in the embedder's tokens."""
        return await self.run(self._searcher.count_tokens, texts)

    async def read_passage(self, chunk_id: str) -> Passage:
        """Return a chunk as it is stored, with its surroundings where hits have them.

        Raises:
            NotFound: There is no such chunk, or none any more.
        """
        return await self.run(self._searcher.read_passage, chunk_id)

    async def warm_up(self, stores: Sequence[str]) -> None:
        """Load the embedder and the stores' indexes, so that the first question does not wait for them."""
        await self.run(self._searcher.warm_up, stores)

    def close(self) -> None:
        """Wait for running calls; those that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Return what a call returns that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
