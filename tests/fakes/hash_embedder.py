"""An embedder without a model: each word adds a fixed random direction, so texts that share words are near.

Held to tests/fakes/embedder_contract.py like the real one. Deterministic, and quick enough for the unit tier.
"""

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.spans import quantise
from retrieval.vectors import EmbedderIdentity, no_spans

TOKEN = re.compile(r"\w{1,8}|[^\w\s]")
"""Long words have several tokens, as with a real tokenizer."""


@functools.lru_cache(16_384)
def find_direction(word: str, dimension: int) -> NDArray[np.float32]:
    """Return a word's direction, (dimension,) float32; not to be changed."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension, dtype=np.float32)


class HashEmbedder:
    """Embeds by hashing words."""

    def __init__(self, dimension: int = 64, max_tokens: int = 64, name: str = "hash") -> None:
        """Choose the sizes."""
        self._identity = EmbedderIdentity(name, dimension, hashlib.sha256(name.encode()).hexdigest())
        self._max_tokens = max_tokens
        self._no_spans = no_spans(dimension)
        self.embedded: list[str] = []

    @property
    def identity(self) -> EmbedderIdentity:
        """Which embedder this is."""
        return self._identity

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that one vector can stand for."""
        return self._max_tokens

    @property
    def makes_spans(self) -> bool:
        """Whether passages have spans as well."""
        return True

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text starts."""
        return [match.start() for match in TOKEN.finditer(text)]

    def embed_query(self, query: str) -> NDArray[np.float32]:
        """Return (dimension,) float32 of unit length."""
        return self._embed(query)

    def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
        """Return (windows, dimension) float32, unit rows; like a real model it reads no further than it can."""
        self.embedded += windows
        if not windows:
            return np.zeros((0, self._identity.dimension), dtype=np.float32)
        return np.stack([self._embed(window) for window in windows])

    def embed_with_spans(self, windows: Sequence[str]) -> tuple[NDArray[np.float32], list[NDArray[np.int8]]]:
        """Return what `embed_windows` does, and a span for every four words, each overlapping half of the next."""
        vectors = self.embed_windows(windows)
        return vectors, [self._embed_spans(window) for window in windows]

    def _embed_spans(self, window: str) -> NDArray[np.int8]:
        words = re.findall(r"\w+", window)
        stretches = [" ".join(words[start : start + 4]) for start in range(0, max(1, len(words) - 2), 2)]
        return quantise(np.stack([self._embed(stretch) for stretch in stretches])) if words else self._no_spans

    def _embed(self, text: str) -> NDArray[np.float32]:
        starts = self.token_starts(text)
        read = text if len(starts) <= self._max_tokens else text[: starts[self._max_tokens]]
        vector = np.full(self._identity.dimension, 1e-3, dtype=np.float32)
        for word in re.findall(r"\w+", read.casefold()):
            vector += find_direction(word, self._identity.dimension)
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
