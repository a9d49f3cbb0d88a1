"""Intervals equal SciPy's on known cases and hold the truth as often as they promise; p-values are McNemar's."""

import logging
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluation.resampling import (
    adjust_holm,
    bootstrap_mean,
    bootstrap_means,
    compare_all,
    compare_paired,
    draw_means,
)

FULL = bool(os.environ.get("LOAM_TEST_FULL"))
SETS = 2000 if FULL else 400
LOG = logging.getLogger(__name__)
"""Tells the counts: pytest -rP --log-level=INFO."""


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.7, 2, n)


def test_the_bca_part_is_scipys() -> None:
    values = skewed(200)
    ours = bootstrap_mean(values, seed=1, resamples=40_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(2))
    found = theirs.confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low <= found.low + 0.002  # ours is the hull with the smoothed one, so never narrower
    assert ours.high >= found.high - 0.002
    assert ours.high - ours.low <= 1.2 * (found.high - found.low)


def test_resamples_have_the_mean_and_the_spread_of_the_theory() -> None:
    values = skewed(80)
    means = draw_means(np.stack([values, 1 - values], axis=1), seed=3, resamples=20_000)
    assert means.mean(axis=0) == pytest.approx([values.mean(), 1 - values.mean()], abs=0.002)
    assert means[:, 0].std() == pytest.approx(values.std() / math.sqrt(80), rel=0.03)
    assert means.sum(axis=1) == pytest.approx(np.ones(20_000))  # what belongs to one question is drawn together


def test_right_and_wrong_answers_give_mcnemars_exact_p_value() -> None:
    first = np.array([1.0] * 3 + [0.0] * 10 + [1.0] * 40)
    second = np.array([0.0] * 3 + [1.0] * 10 + [1.0] * 40)
    exact = stats.binomtest(3, 13, 0.5).pvalue
    assert compare_paired(first, second, seed=0).p_value == pytest.approx(exact)
    more = (np.tile(first, 3), np.tile(second, 3))
    drawn = compare_paired(*more, seed=0, resamples=40_000).p_value
    assert drawn == pytest.approx(stats.binomtest(9, 39, 0.5).pvalue, abs=0.0005)


def test_a_comparison_is_of_the_second_against_the_first() -> None:
    first, second = np.zeros(30), np.array([1.0] * 12 + [0.0] * 18)
    there, back = compare_paired(first, second, seed=0), compare_paired(second, first, seed=0)
    assert there.difference == pytest.approx(0.4)
    assert 0 < there.low < 0.4 < there.high < 1
    assert back.difference == pytest.approx(-0.4)
    assert back.p_value == there.p_value
    assert back.low == pytest.approx(-there.high, abs=0.02)


def test_arms_that_never_differed_are_not_proven_equal() -> None:
    same = compare_paired(np.ones(20), np.ones(20), seed=0)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.low < -0.04
    assert same.high > 0.04
    assert bootstrap_mean(np.ones(10), seed=0).low < 0.8  # ten right answers of ten are not 100%


@pytest.mark.parametrize(("n", "share"), [(30, 0.5), (60, 0.9), (120, 0.2)])
def test_the_interval_of_a_share_holds_it_as_often_as_promised(n: int, share: float) -> None:
    chance = np.random.default_rng(n)
    hits = 0
    for seed in range(SETS):
        interval = bootstrap_mean((chance.random(n) < share).astype(float), seed=seed, resamples=1000)
        hits += interval.low <= share <= interval.high
    LOG.info("held in %d of %d", hits, SETS)
    assert hits / SETS >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / SETS), f"{hits} of {SETS}"


@pytest.mark.parametrize(("n", "gain"), [(40, 0.0), (67, 0.1), (150, 0.02)])
def test_the_interval_of_a_difference_holds_it_as_often_as_promised(n: int, gain: float) -> None:
    chance = np.random.default_rng(7 + n)
    hits = false_alarms = 0
    for seed in range(SETS):
        ease = chance.beta(2, 2, n) * (1 - gain)  # a question is easy or hard for both arms
        first, second = (chance.random(n) < ease).astype(float), (chance.random(n) < ease + gain).astype(float)
        found = compare_paired(first, second, seed=seed, resamples=1000)
        hits += found.low <= gain <= found.high
        false_alarms += gain == 0 and found.p_value <= 0.05
    slack = 2.6 * math.sqrt(0.95 * 0.05 / SETS)
    LOG.info("held in %d of %d", hits, SETS)
    assert hits / SETS >= 0.95 - slack, f"{hits} of {SETS}"
    assert false_alarms / SETS <= 0.05 + slack


def test_all_intervals_hold_together_as_often_as_promised() -> None:
    chance = np.random.default_rng(5)
    shares = {"base": 0.3, "rag": 0.5, "fine-tuned": 0.5, "hybrid": 0.6}
    hits = 0
    for seed in range(SETS):
        ease = chance.random((80, 1)) * 0.5
        scores = {name: (chance.random(80) < share - 0.25 + ease[:, 0]).astype(float) for name, share in shares.items()}
        pairs = compare_all(scores, seed=seed, resamples=1000)
        hits += all(
            pair.comparison.low <= shares[pair.second] - shares[pair.first] <= pair.comparison.high for pair in pairs
        )
    LOG.info("held in %d of %d", hits, SETS)
    assert hits / SETS >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / SETS), f"{hits} of {SETS}"


def test_several_comparisons_are_wider_than_one() -> None:
    scores = {name: skewed(60, seed) for seed, name in enumerate(("a", "b", "c", "d"))}
    pair = next(one for one in compare_all(scores, seed=0) if (one.first, one.second) == ("a", "b"))
    alone = compare_paired(scores["a"], scores["b"], seed=0)
    assert pair.comparison.difference == pytest.approx(alone.difference)
    assert pair.comparison.low < alone.low
    assert pair.comparison.high > alone.high
    assert pair.comparison.p_value >= alone.p_value


def test_weights_move_the_difference() -> None:
    scores = {"a": np.zeros(40), "b": np.array([1.0] * 20 + [0.0] * 20)}
    weights = np.array([1.5] * 20 + [0.5] * 20)
    plain, weighted = (compare_all(scores, seed=0, weights=one)[0].comparison for one in (None, weights))
    assert plain.difference == pytest.approx(0.5)
    assert weighted.difference == pytest.approx(0.75)


def test_the_interval_of_a_weighted_mean_holds_it_as_often_as_promised() -> None:
    chance = np.random.default_rng(9)
    rare = np.arange(200) < 20  # one question in ten, and half of the weight
    weights = np.where(rare, 5.0, 0.5 / 0.9)
    hits = 0
    for seed in range(SETS):
        values = (chance.random(200) < np.where(rare, 0.5, 0.98)).astype(float)
        found = bootstrap_means({"": values}, seed=seed, resamples=1000, weights=weights)[""]
        hits += found.low <= 0.74 <= found.high
    LOG.info("held in %d of %d", hits, SETS)
    assert hits / SETS >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / SETS), f"{hits} of {SETS}"


def test_weights_that_are_all_alike_change_nothing() -> None:
    values = (skewed(60) > 0.3).astype(float)
    plain, weighted = (bootstrap_means({"": values}, seed=2, weights=one)[""] for one in (None, np.ones(60)))
    assert (weighted.mean, weighted.low, weighted.high) == pytest.approx((plain.mean, plain.low, plain.high))
    heavy = bootstrap_means({"": np.ones(60)}, seed=2, weights=np.array([10.0] * 6 + [0.0] * 54))[""]
    assert heavy.mean == 1.0
    assert heavy.low == pytest.approx(bootstrap_mean(np.ones(6), seed=2).low)  # six answers count, not sixty


def test_questions_of_weight_0_are_as_if_nobody_had_asked_them() -> None:
    chance = np.random.default_rng(4)
    scores = {name: (chance.random(90) < share).astype(float) for name, share in (("a", 0.4), ("b", 0.6))}
    counts = np.arange(90) % 3 == 0
    weights = np.where(counts, 2.0, 0.0)
    few = {name: values[counts] for name, values in scores.items()}
    assert compare_all(scores, seed=0, weights=weights) == compare_all(few, seed=0)
    assert compare_all(few, seed=0)[0].comparison.n == 30
    found, wanted = bootstrap_means(scores, seed=0, weights=weights), bootstrap_means(few, seed=0)
    for name in scores:
        assert found[name].n == wanted[name].n == 30
        assert (found[name].mean, found[name].low, found[name].high) == pytest.approx(
            (wanted[name].mean, wanted[name].low, wanted[name].high)
        )
    with pytest.raises(ValueError, match="above 0"):
        compare_all(scores, seed=0, weights=np.zeros(90))


def test_weights_make_no_spread_where_all_questions_agree() -> None:
    scores = {"a": np.zeros(60), "b": np.ones(60)}
    weights = np.where(np.arange(60) < 30, 1.9, 0.1)
    found = compare_all(scores, seed=0, weights=weights)[0].comparison
    assert found.difference == pytest.approx(1.0)
    assert found.high == 1.0
    fewer = compare_paired(np.zeros(33), np.ones(33), seed=0)  # what 60 such weights are worth: 60 / mean(w²)
    assert found.low == pytest.approx(fewer.low, abs=0.005)


def test_the_interval_of_a_weighted_difference_holds_it_as_often_as_promised() -> None:
    chance = np.random.default_rng(11)
    rare = np.arange(200) < 20  # one question in ten, and half of the weight
    weights = np.where(rare, 5.0, 0.5 / 0.9)
    hits = 0
    for seed in range(SETS):
        first = (chance.random(200) < np.where(rare, 0.2, 0.9)).astype(float)
        second = (chance.random(200) < np.where(rare, 0.7, 0.85)).astype(float)
        found = compare_all({"a": first, "b": second}, seed=seed, resamples=1000, weights=weights)[0].comparison
        hits += found.low <= 0.225 <= found.high
    LOG.info("held in %d of %d", hits, SETS)
    assert hits / SETS >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / SETS), f"{hits} of {SETS}"


@pytest.mark.parametrize(("n", "lead"), [(50, 0.26), (100, 0.18), (300, 0.11), (1000, 0.06)])
def test_the_least_lead_that_can_be_shown_is_what_the_docs_say(n: int, lead: float) -> None:
    place = np.arange(n) % 10
    first, second = (place < 5).astype(float), ((place < 3) | (place >= 8)).astype(float)  # disagree on 40%
    others = {f"arm {shift}": np.roll(first, shift) for shift in (1, 2, 3)}
    found = compare_all({"first": first, "second": second, **others}, seed=0)[0].comparison
    assert found.difference == 0.0
    assert (found.high - found.low) / 2 == pytest.approx(lead, abs=0.01)


def test_holm_gives_the_textbook_values() -> None:
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = adjust_holm(p_values)
    assert all(after >= before or after == 1 for before, after in zip(p_values, adjusted, strict=True))
    assert sorted(range(len(p_values)), key=lambda i: (adjusted[i], p_values[i])) == sorted(
        range(len(p_values)), key=lambda i: (p_values[i], adjusted[i])
    )


def test_the_same_numbers_and_seed_give_the_same_result() -> None:
    values = {"a": skewed(50), "b": skewed(50, 1)}
    assert compare_all(values, seed=4) == compare_all(values, seed=4)
    assert compare_all(values, seed=4) != compare_all(values, seed=5)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (np.ones(3), np.ones(4), "same questions for both arms, found 3 and 4"),
        (np.array([0.5, 2.0]), np.ones(2), "from 0 to 1"),
        (np.array([math.nan, 1.0]), np.ones(2), "from 0 to 1"),
        (np.ones(0), np.ones(0), "at least one number"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(first: np.ndarray, second: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare_paired(first, second, seed=0)
