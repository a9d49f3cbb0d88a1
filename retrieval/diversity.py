"""Maximal marginal relevance: hits that are relevant and do not repeat each other, by their stored vectors.

Does not know where the relevance comes from.

Source: Carbonell & Goldstein, «The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing
Summaries», SIGIR 1998, section 2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, bindparam, text

from retrieval.database import read_transaction
from retrieval.embedding import normalise_rows
from retrieval.store import MAX_SQL_PARAMETERS
from retrieval.vectors import unpack_embeddings


def pick_diverse(
    relevance: NDArray[np.float32], vectors: NDArray[np.float32], count: int, mmr_lambda: float
) -> list[int]:
    """Return candidates in the order of their marginal relevance: what each adds to those before it.

    Args:
        relevance: (candidates,) 0 to 1, higher is better.
        vectors: (candidates, dimension) float32, unit rows, parallel to `relevance`.
        count: How many to pick at most.
        mmr_lambda: 1 for relevance alone, 0 for variety alone.

    Returns:
        Positions, the most relevant one first whatever the lambda; of equal ones the earlier.
    """
    if not len(relevance):
        return []
    picked = [int(np.argmax(relevance))]
    nearest = vectors @ vectors[picked[0]]
    while len(picked) < min(count, len(relevance)):
        marginal = mmr_lambda * relevance - (1 - mmr_lambda) * nearest
        marginal[picked] = -np.inf
        picked.append(int(np.argmax(marginal)))
        nearest = np.maximum(nearest, vectors @ vectors[picked[-1]])
    return picked


def read_vectors(engine: Engine, numbers: Sequence[int], dimension: int) -> NDArray[np.float32]:
    """Return one stored vector for each of some chunks, so that they can be compared with each other.

    Args:
        engine: The database.
        numbers: Chunk numbers.
        dimension: Of the vectors.

    Returns:
        (numbers, dimension) float32, unit rows: the mean of a chunk's windows; zeros for a chunk that has just gone.
    """
    query = text("SELECT id, embeddings FROM chunks WHERE id IN :numbers").bindparams(
        bindparam("numbers", expanding=True)
    )
    vectors = np.zeros((len(numbers), dimension), dtype=np.float32)
    places = {number: place for place, number in enumerate(numbers)}
    with read_transaction(engine) as connection:
        for start in range(0, len(numbers), MAX_SQL_PARAMETERS):
            batch = list(numbers[start : start + MAX_SQL_PARAMETERS])
            for row in connection.execute(query, {"numbers": batch}):
                vectors[places[row.id]] = unpack_embeddings(row.embeddings, dimension).mean(axis=0)
    return normalise_rows(vectors)
