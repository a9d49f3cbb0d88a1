"""Tuning finds the side that was planted, promises no more than unseen questions give, and keeps nothing that hurts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import InputError
from retrieval.config import IndexDevice, SearchConfig
from retrieval.dense import build_dense
from retrieval.fusion import ScoredChunks
from retrieval.interaction import Reading
from retrieval.labels import LabelledQuestion, Labels
from retrieval.proximity import LOOKED_AT
from retrieval.tuning import cut_folds, list_settings, tune

CANDIDATES = 30
SEARCH = SearchConfig(dense_weight=0.5, span_weight=0.4)


def plant(side: str, questions: int = 60, seed: int = 0, noise: float = 1.0) -> tuple[Labels, list[ScoredChunks]]:
    """Questions whose answer only one side of the scores tells from the others; the rest is chance."""
    chance = np.random.default_rng(seed)
    labelled, found = [], []
    for _ in range(questions):
        scores = {name: chance.uniform(0, 1, CANDIDATES).astype(np.float32) for name in ("dense", "spans", "lexical")}
        answer = int(chance.integers(CANDIDATES))
        if side != "none":
            scores[side][answer] = 1 + noise * chance.normal() / 4
        labelled.append(LabelledQuestion("q", frozenset({answer}), by_document=False))
        found.append(ScoredChunks(np.arange(CANDIDATES), scores["dense"], scores["spans"], scores["lexical"]))
    return Labels(labelled, {number: number // 3 for number in range(CANDIDATES)}, 2), found


@pytest.mark.parametrize("side", ["dense", "spans", "lexical"])
def test_the_planted_side_gets_the_weight(side: str) -> None:
    report = tune(*plant(side), SEARCH, None)
    share = {
        "dense": report.search.dense_weight * (1 - report.search.span_weight),
        "spans": report.search.dense_weight * report.search.span_weight,
        "lexical": 1 - report.search.dense_weight,
    }
    assert max(share, key=lambda name: share[name]) == side
    assert report.is_better
    assert report.low > 0
    assert report.unseen > report.before + 0.1
    assert report.unseen <= report.fitted + 1e-9
    assert (report.questions, report.unanswerable) == (60, 2)


def test_what_is_promised_is_what_other_questions_give() -> None:
    promised, given = [], []
    for seed in range(8):
        labels, found = plant("spans", questions=40, seed=seed, noise=3)
        report = tune(labels, found, SEARCH, None)
        others = plant("spans", questions=120, seed=1000 + seed, noise=3)
        promised.append(report.unseen)
        given.append(tune(*others, report.search, None).before)
    assert np.mean(promised) == pytest.approx(np.mean(given), abs=0.04)


def test_where_nothing_helps_unseen_questions_are_not_promised_a_gain() -> None:
    reports = [tune(*plant("none", questions=40, seed=seed), SEARCH, None) for seed in range(20)]
    assert all(report.fitted > report.before for report in reports)  # chance can always be fitted
    assert abs(np.mean([report.unseen - report.before for report in reports])) < 0.03
    assert sum(report.low > 0 for report in reports) <= 3  # a 95% interval


def test_a_reranker_that_knows_is_heard_and_one_that_does_not_is_silenced() -> None:
    labels, found = plant("dense", noise=3)
    search = SearchConfig(reranker="small", rerank_weight=0.3)
    asked: list[int] = []

    def know(place: int, numbers: NDArray[np.int64]) -> Reading:
        asked.extend((place * CANDIDATES + numbers).tolist())
        return say(np.isin(numbers, list(labels.questions[place].relevant)))

    report = tune(labels, found, search, know)
    assert (report.search.rerank_weight or 0) > 0.3
    assert report.search.rerank_depth == 50
    assert report.unseen > 0.95
    assert len(asked) == len(set(asked))  # each pair is read once
    chance = np.random.default_rng(1)
    report = tune(labels, found, search, lambda _, numbers: say(chance.uniform(0, 1, len(numbers))))
    assert (report.search.rerank_weight or 0) <= 0.1


def test_word_pairs_get_a_weight_where_they_know_and_each_chunk_is_looked_at_once() -> None:
    labels, found = plant("lexical", noise=3)
    asked: list[int] = []

    def know(place: int, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.extend((place * CANDIDATES + numbers).tolist())
        assert len(numbers) <= LOOKED_AT
        return np.isin(numbers, list(labels.questions[place].relevant)).astype(np.float32)

    report = tune(labels, found, SEARCH, None, score_pairs=know)
    assert report.search.pair_weight > 0
    assert report.unseen > report.before + 0.1
    assert len(asked) == len(set(asked))
    without = tune(labels, found, SEARCH, None)
    assert without.search.pair_weight == 0
    assert report.unseen > without.unseen + 0.05
    assert tune(labels, found, SEARCH, None, score_pairs=lambda *_: None) == without  # questions without pairs
    before = tune(labels, found, replace(SEARCH, pair_weight=0.5), None, score_pairs=know).before
    assert report.before < before


def test_word_pairs_that_know_nothing_are_not_promised_a_gain() -> None:
    gains = []
    for seed in range(4):
        chance = np.random.default_rng(seed)
        labels, found = plant("dense", questions=40, seed=seed, noise=3)
        without = tune(labels, found, SEARCH, None)
        with_pairs = tune(
            labels,
            found,
            SEARCH,
            None,
            score_pairs=lambda _, numbers: chance.uniform(0, 1, len(numbers)).astype(np.float32),  # noqa: B023
        )
        assert with_pairs.search.pair_weight == 0
        gains.append(with_pairs.unseen - without.unseen)
    assert np.mean(gains) < 0.005


@pytest.mark.parametrize("feedback", [0.0, 0.3])
def test_the_likeness_that_a_reranker_has_learned_counts_while_it_is_tuned(feedback: float) -> None:
    labels, found = plant_twins()

    def read(_: int, numbers: NDArray[np.int64]) -> Reading:
        return Reading(np.full(len(numbers), 0.5, np.float32), TWINS[numbers])

    search = SearchConfig(reranker="small", rerank_weight=0.15)
    report = tune(labels, found, search, read, feedback=feedback)
    if feedback:
        assert (report.search.rerank_weight or 0) > 0
        assert report.unseen > 0.95
    else:
        assert report.search.rerank_weight == 0
        assert report.unseen < 0.9


def test_likeness_gets_a_weight_where_answers_are_alike() -> None:
    labels, found = plant_twins()
    vectors = ((build_dense(TWINS, np.arange(CANDIDATES), IndexDevice.cpu), np.arange(CANDIDATES)),)
    report = tune(labels, [replace(one, places=vectors) for one in found], SEARCH, None)
    assert report.search.likeness_weight > 0
    assert report.unseen > 0.95
    without = tune(labels, found, SEARCH, None)
    assert without.search.likeness_weight == 0
    assert without.unseen < 0.9
    labels, found = plant("dense", noise=3)  # one answer, often behind another candidate, whose twin is none
    report = tune(labels, [replace(one, places=vectors) for one in found], replace(SEARCH, likeness_weight=0.5), None)
    assert report.search.likeness_weight < 0.5


TWINS = np.repeat(np.eye(CANDIDATES // 2, dtype=np.float32), 2, axis=0)
"""Vectors of candidates of which each has a neighbour that says the same."""


def plant_twins() -> tuple[Labels, list[ScoredChunks]]:
    """Questions that two candidates of one direction answer, of which the scores know one."""
    labels, found = plant("dense", noise=0)
    both = [
        LabelledQuestion("q", frozenset({answer, answer ^ 1}), by_document=False)
        for question in labels.questions
        for answer in question.relevant
    ]
    return Labels(both, labels.documents, 0), found


def say(scores: NDArray[Any]) -> Reading:
    """Scores of a reranker that knows of no likeness."""
    return Reading(scores.astype(np.float32), np.zeros((len(scores), 0), np.float32))


def test_documents_count_once_by_their_best_chunk() -> None:
    labels, found = plant("lexical")
    by_document = [
        LabelledQuestion("q", frozenset(labels.documents[number] for number in question.relevant), by_document=True)
        for question in labels.questions
    ]
    report = tune(Labels(by_document, labels.documents, 0), found, SEARCH, None)
    assert 0.7 < report.before + 0.05 < report.unseen <= 1


def test_k_is_the_fewest_hits_that_hold_nearly_all() -> None:
    report = tune(*plant("lexical", noise=0), SEARCH, None)
    assert report.k == 1
    assert report.recall_at[0] == report.recall_at[-1] == 1
    report = tune(*plant("lexical", noise=4), SEARCH, None)
    assert report.recall_at == sorted(report.recall_at)
    assert report.recall_at[report.k - 1] >= 0.99 * report.recall_at[-1]
    assert report.k == 1 or report.recall_at[report.k - 2] < 0.99 * report.recall_at[-1]


def test_ties_keep_what_is_there() -> None:
    labels, found = plant("dense", questions=12)
    zeros = np.zeros(CANDIDATES, dtype=np.float32)
    same = [ScoredChunks(one.numbers, zeros, zeros, zeros) for one in found]
    report = tune(labels, same, SEARCH, None)
    assert report.search == SEARCH
    assert not report.is_better


def test_folds_hold_each_question_once() -> None:
    folds = cut_folds(23, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(23))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_the_settings_as_they_are_come_first() -> None:
    assert list_settings(SEARCH)[0] == SEARCH


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InputError, match="wanted at least 10"):
        tune(*plant("dense", questions=9), SEARCH, None)
