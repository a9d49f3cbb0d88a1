"""Tuning a store's search on labelled questions: weights, how many hits, and how much the reranker reads and says.

Every setting of a grid is tried on the candidates that a search brings. What the choice is worth is told by
cross-validation: settings are chosen on four fifths of the questions and judged on the fifth that they have not seen,
those of word pairs and rerankers within the same folds. Settings that do not help on unseen questions are not kept.
Does not know files, the database or models; it gets candidates and functions that look for word pairs and rerank.

Source: Stone, «Cross-Validatory Choice and Assessment of Statistical Predictions», 1974; Breiman et al.,
«Classification and Regression Trees», 1984, section 3.4.3, for the rule of one standard error; Bruch, Gai, Ingber 2023
(https://arxiv.org/abs/2210.11934), section 6, on how few questions the convex combination needs.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from retrieval.config import DEFAULT_RERANK_WEIGHT, FusionMethod, SearchConfig
from retrieval.fusion import ScoredChunks, order_chunks
from retrieval.interaction import Reading, mix_scores
from retrieval.judging import resample_difference
from retrieval.labels import Labels
from retrieval.metrics import measure_ndcg, measure_recall
from retrieval.proximity import LOOKED_AT, look_closer

FOLDS = 5
LEAST_QUESTIONS = 10
DENSE_WEIGHTS = tuple(round(step / 20, 2) for step in range(21))
SPAN_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RRF_WEIGHTS = (0.3, 0.5, 0.7)
PAIR_WEIGHTS = (0.0, 0.3)
"""None, and what was measured (docs/decisions/0082): one question to settle, so that little can be fitted to chance."""
LIKENESS_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
RERANK_DEPTHS = (5, 10, 20, 50)
RERANK_WEIGHTS = tuple(round(step / 10, 1) for step in range(11))
MOST_HITS = 20
KEPT_RECALL = 0.99
"""Share of what twenty hits hold that the recommended number of hits must hold."""

Rerank = Callable[[int, NDArray[np.int64]], Reading]
"""Reads chunks (numbers) for the question at a place of the labels."""
ScorePairs = Callable[[int, NDArray[np.int64]], NDArray[np.float32] | None]
"""Tells how much of its word pairs chunks (LOOKED_AT numbers at most) hold; None: the question has none."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What tuning found.

    Attributes:
        questions: How many were used.
        unanswerable: How many name nothing and were left out.
        before: Mean nDCG@10 with the settings as they were.
        unseen: Mean nDCG@10 of settings chosen on other questions: what can be expected.
        low: Lower end of the 95% interval of `unseen - before`, question by question.
        high: Upper end.
        fitted: Mean nDCG@10 of the chosen settings on the questions that they were chosen on: too good to be expected.
        is_better: Whether unseen questions gained; only then the settings are kept.
        search: The chosen settings.
        k: The fewest hits that hold 99% of what twenty hold.
        recall_at: Mean recall with the chosen settings by number of hits, from one on.
    """

    questions: int
    unanswerable: int
    before: float
    unseen: float
    low: float
    high: float
    fitted: float
    is_better: bool
    search: SearchConfig
    k: int
    recall_at: list[float]


def tune(
    labels: Labels,
    found: Sequence[ScoredChunks],
    search: SearchConfig,
    rerank: Rerank | None,
    progress: Progress = lambda _stage, _done, _total: None,
    seed: int = 0,
    feedback: float = 0.0,
    score_pairs: ScorePairs | None = None,
) -> TuningReport:
    """Choose settings on labelled questions and tell what they are worth on others.

    Args:
        labels: The questions.
        found: Candidates of each, as the store's search brings them.
        search: The settings now, with the reranker's own weight where none was configured.
        rerank: Reads chunks; None: no reranker.
        progress: Called with a stage's name, how much is done, and of how much.
        seed: Of the folds.
        feedback: What the reranker has learned that the likeness to the best hit counts, 0 to 1.
        score_pairs: Looks for word pairs; None: they count nothing.

    Raises:
        InputError: There are too few questions.
    """
    check_labels(labels)
    count = len(labels.questions)
    judge = _Judge(labels, found, rerank, feedback, score_pairs)
    grid = list_settings(search)
    table = np.empty((count, len(grid)))
    for place, settings in enumerate(grid):
        table[:, place] = judge.measure(replace(settings, reranker=None))
        progress("weights", place + 1, len(grid))
    before = judge.measure(search if rerank else replace(search, reranker=None))
    unseen = np.empty(count)
    folds = cut_folds(count, seed)
    for done, fold in enumerate(folds, start=1):
        others = np.setdiff1d(np.arange(count), fold)
        _, values = _choose(judge, grid, table, others)
        unseen[fold] = values[fold]
        progress("folds", done, len(folds))
    chosen, values = _choose(judge, grid, table, np.arange(count))
    low, high = resample_difference(before, unseen)
    recall = judge.measure_recall(chosen)
    k = 1 + next(place for place, value in enumerate(recall) if value >= KEPT_RECALL * recall[-1])
    return TuningReport(
        questions=count,
        unanswerable=labels.unanswerable,
        before=float(before.mean()),
        unseen=float(unseen.mean()),
        low=low,
        high=high,
        fitted=float(values.mean()),
        is_better=bool(unseen.mean() > before.mean()),
        search=chosen,
        k=k,
        recall_at=[round(value, 4) for value in recall],
    )


def check_labels(labels: Labels) -> None:
    """Refuse too few questions, before anything is searched.

    Raises:
        InputError: There are fewer than ten.
    """
    if len(labels.questions) < LEAST_QUESTIONS:
        raise InputError(
            f"questions: wanted at least {LEAST_QUESTIONS} that documents of the store answer, found "
            f"{len(labels.questions)}. Label more; 50 or more settle the weights.",
            param="questions",
        )


def list_settings(search: SearchConfig) -> list[SearchConfig]:
    """Return the settings that are tried, those nearest to the present ones first, so that ties change little."""
    weighted = [
        replace(search, fusion=FusionMethod.weighted, dense_weight=dense, span_weight=span)
        for dense in DENSE_WEIGHTS
        for span in SPAN_WEIGHTS
    ]
    ranked = [
        replace(search, fusion=FusionMethod.rrf, dense_weight=dense, span_weight=search.span_weight)
        for dense in RRF_WEIGHTS
    ]

    def distance(one: SearchConfig) -> tuple[bool, float]:
        steps = abs(one.dense_weight - search.dense_weight) + abs(one.span_weight - search.span_weight)
        return one.fusion is not search.fusion, steps

    return sorted([*weighted, *ranked], key=distance)


def cut_folds(count: int, seed: int) -> list[NDArray[np.int64]]:
    """Return places of questions in folds of nearly equal size, drawn at random."""
    places = list(range(count))
    random.Random(seed).shuffle(places)  # noqa: S311  (a draw that can be repeated is wanted)
    return [np.array(sorted(places[first::FOLDS]), dtype=np.int64) for first in range(FOLDS)]


def _choose(
    judge: "_Judge", grid: Sequence[SearchConfig], table: NDArray[np.float64], questions: NDArray[np.int64]
) -> tuple[SearchConfig, NDArray[np.float64]]:
    """Return the settings that are best on some questions, and the value of every question with them."""
    place = int(np.argmax(table[questions].mean(axis=0)))
    best, values = grid[place], table[:, place]
    for weight in PAIR_WEIGHTS if judge.knows_pairs else ():
        settings = replace(best, pair_weight=weight)
        found = judge.measure(replace(settings, reranker=None))
        if _is_surely_better(found[questions], values[questions]):
            best, values = settings, found
    for weight in LIKENESS_WEIGHTS:
        settings = replace(best, likeness_weight=weight)
        found = judge.measure(replace(settings, reranker=None))
        if found[questions].mean() > values[questions].mean():
            best, values = settings, found
    if not judge.has_reranker:
        return best, values
    weights = sorted({*RERANK_WEIGHTS, DEFAULT_RERANK_WEIGHT if best.rerank_weight is None else best.rerank_weight})
    best = replace(best, rerank_weight=0.0)  # unless the reranker helps
    for depth in RERANK_DEPTHS:
        for weight in weights:
            settings = replace(best, rerank_depth=depth, rerank_weight=weight)
            found = judge.measure(settings)
            if found[questions].mean() > values[questions].mean():
                best, values = settings, found
    return best, values


def _is_surely_better(found: NDArray[np.float64], values: NDArray[np.float64]) -> bool:
    """Whether the mean gain is more than its standard error: one that is less may well be chance."""
    gains = found - values
    return bool(gains.mean() > gains.std(ddof=1) / len(gains) ** 0.5)


class _Judge:
    """Measures settings on the questions; each pair of question and chunk is reranked once."""

    def __init__(
        self,
        labels: Labels,
        found: Sequence[ScoredChunks],
        rerank: Rerank | None,
        feedback: float,
        score_pairs: ScorePairs | None,
    ) -> None:
        self._questions = labels.questions
        self._found = found
        self._rerank = rerank
        self._score_pairs = score_pairs
        self._documents = labels.documents
        self._feedback = feedback
        self._readings: list[dict[int, tuple[float, NDArray[np.float32]]]] = [{} for _ in found]
        self._pairs: list[dict[int, float]] = [{} for _ in found]
        self._measured: dict[tuple[object, ...], NDArray[np.float64]] = {}

    @property
    def has_reranker(self) -> bool:
        return self._rerank is not None

    @property
    def knows_pairs(self) -> bool:
        return self._score_pairs is not None

    def measure(self, search: SearchConfig) -> NDArray[np.float64]:
        """Return (questions,) nDCG@10."""
        key: tuple[object, ...] = (search.fusion, search.dense_weight, search.span_weight)
        key += (search.pair_weight, search.likeness_weight)
        key += (search.rerank_depth, search.rerank_weight) if search.reranker is not None else (None,)
        if key not in self._measured:
            values = [
                measure_ndcg(self._rank(place, search), dict.fromkeys(self._questions[place].relevant, 1.0))
                for place in range(len(self._found))
            ]
            self._measured[key] = np.array(values)
        return self._measured[key]

    def measure_recall(self, search: SearchConfig) -> list[float]:
        """Return the mean recall of the first 1, 2, … hits."""
        rankings = [self._rank(place, search) for place in range(len(self._found))]
        gains = [dict.fromkeys(question.relevant, 1.0) for question in self._questions]
        return [
            float(np.mean([measure_recall(ranking, gain, k) for ranking, gain in zip(rankings, gains, strict=True)]))
            for k in range(1, MOST_HITS + 1)
        ]

    def _rank(self, place: int, search: SearchConfig) -> list[int]:
        """Return the units of a question's hits, best first, each once."""
        found = look_closer(self._found[place], search, partial(self._look, place))
        order, fused = order_chunks(found, search)
        if search.reranker is not None and self._rerank is not None and len(order):
            read = order[: search.rerank_depth]
            weight = DEFAULT_RERANK_WEIGHT if search.rerank_weight is None else search.rerank_weight
            reading = self._read(place, found.numbers[read])
            likeness = reading.means @ reading.means.T
            mixed = mix_scores(fused[read], reading.scores, likeness, weight, self._feedback)
            order = np.concatenate([read[np.argsort(-mixed, kind="stable")], order[len(read) :]])
        numbers = [int(number) for number in found.numbers[order]]
        if self._questions[place].by_document:
            numbers = [self._documents[number] for number in numbers if number in self._documents]
        return list(dict.fromkeys(numbers))

    def _look(self, place: int, numbers: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return what word pairs say of the best chunks, each looked at once; None: nothing."""
        if self._score_pairs is None:
            return None
        best, known = numbers[:LOOKED_AT].tolist(), self._pairs[place]
        new = [number for number in best if number not in known]
        scores = self._score_pairs(place, np.array(new, dtype=np.int64)) if new else np.zeros(0, dtype=np.float32)
        if scores is None:
            return None
        known |= zip(new, scores.tolist(), strict=True)
        return np.array([known[number] for number in best], dtype=np.float32)

    def _read(self, place: int, numbers: NDArray[np.int64]) -> Reading:
        """Return what the reranker makes of each chunk."""
        known = self._readings[place]
        new = np.array([number for number in numbers if int(number) not in known], dtype=np.int64)
        if len(new) and self._rerank is not None:
            reading = self._rerank(place, new)
            known |= zip(new.tolist(), zip(reading.scores.tolist(), reading.means, strict=True), strict=True)
        scores, means = zip(*(known[int(number)] for number in numbers), strict=True)
        return Reading(np.array(scores, dtype=np.float32), np.stack(means))
