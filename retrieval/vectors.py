"""The vectors of one chunk, which embedder made them, and the bytes that the database keeps of them.

Does not know how they are made, scored or stored.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import ContractError


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """Which embedder made a store's vectors; vectors of different identities cannot be compared.

    Attributes:
        name: The model folder's name.
        dimension: Of its vectors.
        sha256: Over everything that decides a vector: weights, tokenizer, pooling, prefixes.
    """

    name: str
    dimension: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ChunkVectors:
    """All vectors of one chunk.

    Attributes:
        windows: (windows, dimension) float32, unit rows; one unless the chunk is longer than the embedder reads.
        spans: (spans, dimension) int8, each scaled to a largest number of 127; none where the embedder makes none.
    """

    windows: NDArray[np.float32]
    spans: NDArray[np.int8]


def no_spans(dimension: int) -> NDArray[np.int8]:
    """Return the spans of a chunk that has none."""
    return np.zeros((0, dimension), dtype=np.int8)


def pack_vectors(vectors: ChunkVectors, dimension: int) -> tuple[bytes, bytes | None]:
    """Return the bytes of a chunk's vectors and of its spans as the database keeps them.

    Raises:
        ValueError: Their shape is not (any, dimension), or there is none.
    """
    windows = np.ascontiguousarray(vectors.windows, dtype="<f4")
    if windows.ndim != 2 or windows.shape[1] != dimension or not len(windows):
        raise ValueError(f"vectors: wanted (windows, {dimension}), found {windows.shape}")
    if vectors.spans.dtype != np.int8 or vectors.spans.ndim != 2 or vectors.spans.shape[1] != dimension:
        raise ValueError(f"spans: wanted (spans, {dimension}) int8, found {vectors.spans.shape} {vectors.spans.dtype}")
    return windows.tobytes(), vectors.spans.tobytes() if len(vectors.spans) else None


def unpack_vectors(embeddings: bytes, spans: bytes | None, dimension: int) -> ChunkVectors:
    """Return a chunk's vectors from its bytes.

    Raises:
        ContractError: They are no rows of that dimension.
    """
    if len(spans or b"") % dimension:
        raise ContractError(f"spans: wanted rows of {dimension} bytes, found {len(spans or b'')}. Restore a backup.")
    rows = np.frombuffer(spans or b"", dtype=np.int8).reshape(-1, dimension)
    return ChunkVectors(unpack_embeddings(embeddings, dimension), rows)


def unpack_embeddings(data: bytes, dimension: int) -> NDArray[np.float32]:
    """Return (windows, dimension) float32 from a chunk's bytes."""
    if not data or len(data) % (4 * dimension):
        raise ContractError(f"embeddings: wanted rows of {4 * dimension} bytes, found {len(data)}. Restore a backup.")
    return np.frombuffer(data, dtype="<f4").reshape(-1, dimension)
