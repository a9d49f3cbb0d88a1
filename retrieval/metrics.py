"""How good a ranking is, by judgements of which documents answer a query: nDCG, recall, reciprocal rank.

Definitions and treatment of ties are trec_eval's: a document counts once, unjudged ones count as not relevant, and a
query without a relevant document has no value. Does not know where a ranking came from.

Source: Järvelin and Kekäläinen, «Cumulated gain-based evaluation of IR techniques», 2002, with gains as they are judged
(trec_eval's ndcg_cut); https://github.com/usnistgov/trec_eval
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over queries, 0 to 1 each.

    Attributes:
        ndcg_at_10: Normalised discounted cumulative gain of the first ten.
        recall_at_10: Share of the relevant documents among the first ten.
        mrr_at_10: One over the rank of the first relevant one; 0 where none is among the first ten.
        queries: How many have a relevant document.
    """

    ndcg_at_10: float
    recall_at_10: float
    mrr_at_10: float
    queries: int


def measure_ndcg(ranking: Sequence[T], gains: Mapping[T, float], k: int = 10) -> float:
    """Return nDCG@k of one query.

    Args:
        ranking: Ids, best first.
        gains: Of the relevant documents, above 0; at least one.
        k: How many of the ranking count.
    """
    ideal = sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:k]
    return _discount([gains.get(name, 0.0) for name in ranking[:k]]) / _discount(ideal)


def _discount(gains: Sequence[float]) -> float:
    return math.fsum(max(gain, 0.0) / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def measure_recall(ranking: Sequence[T], gains: Mapping[T, float], k: int = 10) -> float:
    """Return which share of a query's relevant documents is among the first k."""
    relevant = {name for name, gain in gains.items() if gain > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def measure_reciprocal_rank(ranking: Sequence[T], gains: Mapping[T, float], k: int = 10) -> float:
    """Return one over the rank of the first relevant document among the first k; 0 where there is none."""
    return next((1 / rank for rank, name in enumerate(ranking[:k], start=1) if gains.get(name, 0) > 0), 0.0)


def measure_quality(rankings: Mapping[str, Sequence[str]], judged: Mapping[str, Mapping[str, float]]) -> Quality:
    """Return the means over the queries that have a relevant document.

    Args:
        rankings: Document ids, best first and each once, by query.
        judged: Gains by document by query.

    Raises:
        ValueError: No query has both a ranking and a relevant document.
    """
    pairs = [
        (ranking, judged[query])
        for query, ranking in rankings.items()
        if any(gain > 0 for gain in judged.get(query, {}).values())
    ]
    if not pairs:
        raise ValueError("rankings: wanted at least one query with a relevant document, found none")
    ndcg, recall, reciprocal_rank = (
        math.fsum(measure(ranking, gains) for ranking, gains in pairs) / len(pairs)
        for measure in (measure_ndcg, measure_recall, measure_reciprocal_rank)
    )
    return Quality(ndcg, recall, reciprocal_rank, len(pairs))
