"""Word pairs: which of a question's neighbouring words stand in a text as they do in the question.

BM25 counts words wherever they stand, and vectors blur them; «moon landing» says more than a moon here and a landing
there. A pair counts where its second word comes at most GAP words after its first, with the mean of what both count for
BM25. Texts are split when they are looked at, so only the best few candidates are. Does not know stores.

Source: Metzler and Croft, «A Markov Random Field Model for Term Dependencies», SIGIR 2005 (ordered windows).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.fusion import ScoredChunks, order_chunks
from retrieval.lexical import LexicalIndex, list_words, split_words, weigh_words

GAP = 3
LOOKED_AT = 10
"""Candidates whose texts are looked at; twice as many are worth nothing (docs/decisions/0082)."""
KEPT_TEXTS = 1024
"""Texts whose words are kept, some 2 kB each: what was found lately is often found again."""

Pairs = dict[tuple[str, str], float]
"""What each pair of a question's words counts; all together 1."""
ScoreBest = Callable[[NDArray[np.int64]], NDArray[np.float32] | None]


def look_closer(found: ScoredChunks, search: SearchConfig, score: ScoreBest) -> ScoredChunks:
    """Return candidates with what the query's word pairs say of the best of them.

    Args:
        found: Of one store, scored by all else.
        search: The weights.
        score: Told the numbers of the candidates, best first, it scores the first LOOKED_AT; None: there are no pairs.
    """
    if not search.pair_weight or search.dense_weight == 1:
        return found
    order, _ = order_chunks(found, search)
    best = score(found.numbers[order])
    if best is None:
        return found
    scores = np.zeros(len(found.numbers), dtype=np.float32)
    scores[order[:LOOKED_AT]] = best
    return replace(found, pairs=scores)


def score_best(
    index: LexicalIndex,
    query: str,
    read_texts: Callable[[NDArray[np.int64]], list[str]],
    numbers: NDArray[np.int64],
) -> NDArray[np.float32] | None:
    """Return how much of a query's word pairs the first LOOKED_AT of some chunks hold; None: it has no pairs.

    Args:
        index: What the store's words count.
        query: Free text.
        read_texts: Returns the texts of the first LOOKED_AT; an empty one for a chunk that has gone.
        numbers: Of the chunks.
    """
    pairs = list_pairs(index, query)
    return score_pairs(pairs, read_texts(numbers), index.language) if pairs else None


def list_pairs(index: LexicalIndex, query: str) -> Pairs:
    """Return the neighbouring words of a question, stop words left out, that the index knows; none: an empty dict."""
    words = split_words(query, index.language)
    rarity = weigh_words(index, words)
    found = {
        (one, two): rarity[one] + rarity[two]
        for one, two in pairwise(words)
        if one != two and one in rarity and two in rarity
    }
    total = sum(found.values())
    return {pair: weight / total for pair, weight in found.items()}


def score_pairs(pairs: Pairs, texts: Sequence[str], language: str) -> NDArray[np.float32]:
    """Return how much of the pairs each text holds, (texts,) float32, 0 to 1."""
    wanted = {word for pair in pairs for word in pair}
    scores = np.zeros(len(texts), dtype=np.float32)
    for number, text in enumerate(texts):
        places: dict[str, list[int]] = {}
        for place, word in enumerate(_split(text, language)):
            if word in wanted:
                places.setdefault(word, []).append(place)
        scores[number] = sum(
            weight for (one, two), weight in pairs.items() if _follow(places.get(one, ()), places.get(two, ()))
        )
    return scores.clip(0, 1)


@lru_cache(KEPT_TEXTS)
def _split(text: str, language: str) -> tuple[str, ...]:
    return tuple(list_words(text, language))


def _follow(ones: Sequence[int], twos: Sequence[int]) -> bool:
    """Whether one of the second places comes at most GAP after one of the first."""
    return any(0 < two - one <= GAP for one in ones for two in twos)
