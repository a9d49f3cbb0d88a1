"""Learning what the weights of a late interaction are: of tokens from texts, of scores from ranked questions.

    passages → how many hold a token → how rare it is
    ranked questions → what each pair of weights gains on each set → the pair that gains most where it gains least

The encoder stays as it is: what is learned is so little that it holds for questions of other kinds. The set that gains
least decides, because questions to come may be of its kind. Does not know files.

Source: Robertson & Zaragoza, «The Probabilistic Relevance Framework», 2009, for the rarity of a term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from retrieval.interaction import Weighting, mix_scores
from retrieval.metrics import measure_ndcg
from retrieval.mining import RankedQuestion
from retrieval.rerank import Reranker

RERANK_WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
FEEDBACKS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A question whose passages were scored.

    Attributes:
        fused: (passages,) of the search.
        reranked: (passages,) of the reranker.
        likeness: (passages, passages) cosines of the passages.
        gains: 1 by the place of each passage that answers.
    """

    fused: NDArray[np.float32]
    reranked: NDArray[np.float32]
    likeness: NDArray[np.float32]
    gains: dict[int, float]


def learn_weighting(
    sets: Sequence[Sequence[RankedQuestion]],
    reranker: Reranker,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Weighting:
    """Learn from ranked questions and their passages.

    Args:
        sets: Questions by set, at least one in each.
        reranker: A model of late interaction; it has the rarity of tokens from here on.
        progress: Called with how many questions are scored, and how many there are.
    """
    passages = {passage for questions in sets for question in questions for passage in question.passages}
    weighting = Weighting(measure_rarity([reranker.list_tokens(*passage) for passage in passages], reranker), 0.0, 0.0)
    reranker.take_weighting(weighting)
    total, done = sum(map(len, sets)), 0
    scored: list[list[_Scored]] = []
    for questions in sets:
        scored.append([])
        for question in questions:
            reranked = reranker.score(question.question, question.passages)
            means = reranker.average(question.passages)
            gains = dict.fromkeys(np.flatnonzero(question.relevant).tolist(), 1.0)
            scored[-1].append(_Scored(question.fused, reranked, means @ means.T, gains))
            done += 1
            progress(done, total)
    weight, feedback = _choose(scored)
    return replace(weighting, rerank_weight=weight, feedback=feedback)


def measure_rarity(texts: Sequence[Sequence[int]], reranker: Reranker) -> NDArray[np.float32]:
    """Return how rare each token is, (vocabulary,) float32 above 0: log(1 + texts / (1 + texts that hold it))."""
    held = np.zeros(reranker.vocabulary_size, dtype=np.int64)
    for tokens in texts:
        held[np.unique(np.array(tokens, dtype=np.int64))] += 1
    return np.log1p(len(texts) / (1 + held)).astype(np.float32)


def _choose(sets: Sequence[Sequence[_Scored]]) -> tuple[float, float]:
    """Return the two weights whose gain in nDCG is largest on the set that gains least."""
    before = [np.mean([_measure(one, 0.0, 0.0) for one in part]) for part in sets]
    worst = {
        (weight, feedback): min(
            np.mean([_measure(one, weight, feedback) for one in part]) - base
            for part, base in zip(sets, before, strict=True)
        )
        for weight, feedback in product(RERANK_WEIGHTS, FEEDBACKS)
    }
    return max(worst, key=lambda pair: worst[pair])


def _measure(one: _Scored, weight: float, feedback: float) -> float:
    mixed = mix_scores(one.fused, one.reranked, one.likeness, weight, feedback)
    return measure_ndcg(np.argsort(-mixed, kind="stable").tolist(), one.gains)
