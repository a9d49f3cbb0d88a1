"""How much a trained model gains on a question set: nDCG@10 before and after, question by question.

Does not know how the model was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.metrics import measure_ndcg
from retrieval.mining import Candidates
from retrieval.question_set import QuestionSet
from retrieval.rerank import Reranker

RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Gain:
    """What a model gains on a question set.

    Attributes:
        dataset: The set's name.
        questions: How many were asked.
        before: Mean nDCG@10 of the hybrid search without the model.
        after: With it.
        low: Lower end of the difference's 95% interval.
        high: Upper end.
    """

    dataset: str
    questions: int
    before: float
    after: float
    low: float
    high: float


def judge_reranker(
    questions: QuestionSet,
    candidates: Sequence[Candidates],
    reranker: Reranker,
    search: SearchConfig,
    progress: Callable[[int, int], None],
) -> Gain:
    """Let a reranker order the best candidates as a search would.

    Args:
        questions: The set.
        candidates: Of each question, found by the hybrid search.
        reranker: The model.
        search: Depth and weight.
        progress: Called with how many questions are done, and of how many.
    """
    before, after = [], []
    for done, (question, relevant, found) in enumerate(
        zip(questions.questions, questions.relevant, candidates, strict=True), start=1
    ):
        places, fused = found.places[: search.rerank_depth], found.fused[: search.rerank_depth]
        passages = [questions.passages[place] for place in places]
        mixed, _ = reranker.rank(question, passages, fused, search.rerank_weight)
        gains = dict.fromkeys(relevant, 1.0)
        before.append(measure_ndcg(places.tolist(), gains))
        after.append(measure_ndcg(places[np.argsort(-mixed, kind="stable")].tolist(), gains))
        progress(done, len(questions.questions))
    return _sum_up(questions, before, after)


def judge_embedder(questions: QuestionSet, before: Sequence[Candidates], after: Sequence[Candidates]) -> Gain:
    """Compare what the hybrid search finds with two embedders."""
    return _sum_up(
        questions,
        *(
            [
                measure_ndcg(found.places.tolist(), dict.fromkeys(relevant, 1.0))
                for found, relevant in zip(candidates, questions.relevant, strict=True)
            ]
            for candidates in (before, after)
        ),
    )


def _sum_up(questions: QuestionSet, before: list[float], after: list[float]) -> Gain:
    low, high = resample_difference(np.array(before), np.array(after))
    return Gain(questions.name, len(before), float(np.mean(before)), float(np.mean(after)), low, high)


def resample_difference(before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the mean difference of paired values, by bootstrap.

    Source: Sakai, «Evaluating Evaluation Metrics based on the Bootstrap», SIGIR 2006.
    """
    differences = after - before
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
