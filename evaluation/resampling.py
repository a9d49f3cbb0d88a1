"""How sure a mean or a difference is: bootstrap intervals, a sign-flip test, corrections for several comparisons.

Arms that answer the same questions are compared question by question: what is hard for one is mostly hard for the
other, and a paired difference does not pay for that. Knows numbers between 0 and 1, not what they measure; decision.py
does. The same numbers and seed give the same result.

Sources: BCa bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap (1993), equations 14.10, 14.14 and 14.15;
pseudo-observations, Agresti and Coull (1998) for one share, Agresti and Min (2005) for paired ones; Holm (1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BATCH_CELLS = 4_000_000
"""Numbers that are drawn at once: 32 MB."""
MAX_ENUMERATED = 13
"""Up to so many questions that differ, every assignment of signs is tried (8,192) instead of drawn."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval that holds the true one with probability `level`.

    Attributes:
        mean: Of the values.
        low: Lower end, in the values' unit.
        high: Upper end.
        n: How many values.
        level: Such as 0.95.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much the second of two arms is better than the first, on the same questions.

    Attributes:
        difference: Mean of second minus first.
        low: Lower end of its interval.
        high: Upper end.
        p_value: Of the two-sided sign-flip test: how often differences at least as large come up when each question's
            sign is left to chance.
        n: Questions that count.
        level: Of the interval.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    level: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison out of several.

    Attributes:
        first: An arm.
        second: Another one.
        comparison: Its interval is wide enough for all pairs to hold at once; its p-value is Holm's.
    """

    first: str
    second: str
    comparison: Comparison


def bootstrap_mean(values: Floats, *, seed: int, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Return the mean of scores with its interval.

    Args:
        values: Shape (n,), each from 0 to 1.
        seed: Of the draws.
        level: Probability with which the interval is to hold the true mean.
        resamples: Draws with replacement.

    Raises:
        ValueError: There are no values, or some lie outside 0 to 1.
    """
    return bootstrap_means({"": values}, seed=seed, level=level, resamples=resamples)[""]


def bootstrap_means(
    scores: Mapping[str, Floats],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
    weights: Floats | None = None,
) -> dict[str, Interval]:
    """Return the mean of each arm's scores with an interval, each alone at `level`; all share their draws.

    Args:
        scores: By arm, each of shape (n,), from 0 to 1, on the same questions.
        seed: Of the draws.
        level: Probability with which each interval is to hold its true mean.
        resamples: Draws with replacement.
        weights: Shape (n,), at least 0: how much each question counts beside the others; one of weight 0 is left
            out. None: all alike.

    Raises:
        ValueError: There are no scores, they differ in number, or some lie outside 0 to 1.
    """
    checked, weights = _leave_out(_check_arms(scores), weights)
    parts = checked if weights is None else {name: _linearise(values, weights) for name, values in checked.items()}
    drawn = draw_means(np.stack(list(parts.values()), axis=1), seed=seed, resamples=resamples)
    weight = _z(level) ** 2 / 2
    found = {}
    for (name, values), means in zip(parts.items(), drawn.T, strict=True):
        ends = (
            _bca_interval(values, means, level),
            _smooth_interval(_sum_up(values, weights), ((0.0, weight), (1.0, weight)), level),
        )
        low, high = max(0.0, min(low for low, _ in ends)), min(1.0, max(high for _, high in ends))
        found[name] = Interval(float(values.mean()), low, high, len(values), level)
    return found


def compare_paired(
    first: Floats, second: Floats, *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> Comparison:
    """Return how much better the second arm is than the first.

    Args:
        first: Scores of one arm, shape (n,), each from 0 to 1.
        second: Scores of the other on the same questions, in the same order.
        seed: Of the draws.
        level: Probability with which the interval is to hold the true difference.
        resamples: Draws with replacement, and assignments of signs.

    Raises:
        ValueError: There are no values, they differ in number, or some lie outside 0 to 1.
    """
    first, second = _check_scores(first), _check_scores(second)
    if first.shape != second.shape:
        raise ValueError(f"scores: wanted the same questions for both arms, found {len(first)} and {len(second)}")
    return _compare_differences((second - first)[:, None], seed, level, resamples)[0]


def compare_all(
    scores: Mapping[str, Floats],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
    weights: Floats | None = None,
) -> list[Pair]:
    """Compare every arm with every other; all intervals hold together with probability `level`.

    With k arms there are m = k(k-1)/2 pairs: each interval is made for 1 - (1 - level)/m (Bonferroni), and p-values are
    corrected by Holm's method. Because all pairs are counted, the best arm may be picked after looking.

    Args:
        scores: By arm, each of shape (n,), from 0 to 1, on the same questions in the same order.
        seed: Of the draws; all pairs share them.
        level: For all pairs together.
        resamples: Draws with replacement, and assignments of signs.
        weights: Shape (n,), at least 0: how much each question counts beside the others; one of weight 0 is left
            out. None: all alike.

    Returns:
        The pairs in the order of the arms, earlier arm first.

    Raises:
        ValueError: Scores differ in number, are missing, or lie outside 0 to 1.
    """
    checked, weights = _leave_out(_check_arms(scores), weights)
    pairs = list(combinations(checked, 2))
    if not pairs:
        return []
    differences = np.stack([checked[second] - checked[first] for first, second in pairs], axis=1)
    each = 1 - (1 - level) / len(pairs)
    found = _compare_differences(differences, seed, each, resamples, weights)
    adjusted = adjust_holm([one.p_value for one in found])
    return [
        Pair(first, second, Comparison(one.difference, one.low, one.high, p_value, one.n, level))
        for (first, second), one, p_value in zip(pairs, found, adjusted, strict=True)
    ]


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that can be compared with the level as if each were the only one.

    Args:
        p_values: One a comparison, from 0 to 1.

    Returns:
        In the same order; the chance of any false alarm among all of them is at most the level.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def draw_means(values: Floats, *, seed: int, resamples: int) -> Floats:
    """Return the means of samples drawn from the rows with replacement.

    Args:
        values: Shape (n, m): n questions, m quantities; a question's quantities are drawn together.
        seed: Of the draws.
        resamples: How many samples of n rows.

    Returns:
        Shape (resamples, m).
    """
    n = len(values)
    generator = np.random.default_rng(seed)
    batch = max(1, BATCH_CELLS // n)
    means = []
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(counts @ values / n)
    return np.concatenate(means)


def _compare_differences(
    differences: Floats, seed: int, level: float, resamples: int, weights: Floats | None = None
) -> list[Comparison]:
    """Return one comparison a column of paired differences, shape (n, m), each within -1 and 1."""
    signed = differences if weights is None else differences * weights[:, None]
    p_values = _flip_signs(signed, seed=seed + 1, resamples=resamples)
    if weights is not None:
        differences = np.stack([_linearise(column, weights) for column in differences.T], axis=1)
    means = draw_means(differences, seed=seed, resamples=resamples)
    z = _z(level)
    extra = z * z / 8
    found = []
    for column in range(differences.shape[1]):
        values = differences[:, column]
        ends = (
            _bca_interval(values, means[:, column], level),
            _smooth_interval(_sum_up(values, weights), ((-1.0, extra), (1.0, extra), (0.0, 2 * extra)), level),
        )
        low, high = max(-1.0, min(low for low, _ in ends)), min(1.0, max(high for _, high in ends))
        found.append(Comparison(float(values.mean()), low, high, p_values[column], len(values), level))
    return found


def _bca_interval(values: Floats, means: Floats, level: float) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval of a mean.

    Args:
        values: Shape (n,).
        means: Of their resamples, shape (resamples,).
        level: Of the interval.
    """
    mean = values.mean()
    deviations = values - mean
    spread = float((deviations**2).sum())
    if spread < 1e-12:
        return float(mean), float(mean)
    normal = NormalDist()
    tolerance = 1e-12
    share = float((means < mean - tolerance).mean() + (np.abs(means - mean) <= tolerance).mean() / 2)
    edge = 1 / (len(means) + 1)
    bias = normal.inv_cdf(min(max(share, edge), 1 - edge))
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)  # the jackknife's, in closed form for a mean
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + normal.inv_cdf(tail)
        denominator = 1 - acceleration * shifted
        ends.append(normal.cdf(bias + shifted / denominator) if denominator > 0 else round(tail))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a normal interval needs to know of some values: how many, their sum, and the sum of their squares."""

    count: float
    total: float
    squares: float


def _sum_up(values: Floats, weights: Floats | None = None) -> _Sums:
    """Return the sums of some values; of linearised ones, the sums of as many equal answers as they are worth.

    Unequal weights cost questions: n of them are worth n / mean(w²) (Kish, Survey Sampling, 1965).
    """
    if weights is None:
        return _Sums(len(values), float(values.sum()), float((values**2).sum()))
    loss = float((weights**2).mean())
    count, mean = len(values) / loss, float(values.mean())
    return _Sums(count, count * mean, count * (float(values.var()) / loss + mean * mean))


def _linearise(values: Floats, weights: Floats) -> Floats:
    """Return values whose plain mean is the weighted one and whose spread is that of its error.

    The weighted mean is a ratio; these are its first-order terms. Where all scores agree, weights change nothing.
    """
    mean = float((values * weights).mean())
    linear: Floats = mean + weights * (values - mean)
    return linear


def _smooth_interval(sums: _Sums, extras: Sequence[tuple[float, float]], level: float) -> tuple[float, float]:
    """Return the normal interval of a mean after pseudo-observations were added.

    A bootstrap knows only what was seen: where all answers agree it is sure of a difference of exactly nothing, and
    where a few differ it is too sure. The pseudo-observations stand for what was not seen.

    Args:
        sums: Of the values.
        extras: Value and weight of each pseudo-observation.
        level: Of the interval.
    """
    n = sums.count + sum(weight for _, weight in extras)
    mean = (sums.total + sum(value * weight for value, weight in extras)) / n
    second = (sums.squares + sum(value * value * weight for value, weight in extras)) / n
    half = _z(level) * math.sqrt(max(0.0, second - mean * mean) / n)
    return mean - half, mean + half


def _flip_signs(differences: Floats, *, seed: int, resamples: int) -> list[float]:
    """Return the two-sided p-value of each column, shape (n, m), if signs were a matter of chance.

    For right and wrong answers this is McNemar's exact test.
    """
    generator = np.random.default_rng(seed)
    p_values = []
    for column in differences.T:
        values = column[column != 0]
        observed = abs(float(values.sum()))
        if len(values) <= MAX_ENUMERATED:
            bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
            sums = np.abs((2 * bits - 1) @ values)
            p_values.append(float((sums >= observed - 1e-9).mean()))
            continue
        reached, batch = 0, max(1, BATCH_CELLS // len(values))
        for start in range(0, resamples, batch):
            rows = min(batch, resamples - start)
            signs = generator.integers(0, 2, (rows, len(values)), dtype=np.int8) * 2 - 1
            reached += int((np.abs(signs @ values) >= observed - 1e-9).sum())
        p_values.append((1 + reached) / (1 + resamples))
    return p_values


def _z(level: float) -> float:
    """Return the normal quantile of a two-sided level."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_arms(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the scores of every arm as float64, or say what is wrong with them."""
    checked = {name: _check_scores(values) for name, values in scores.items()}
    if len({len(values) for values in checked.values()}) > 1:
        counts = ", ".join(f"{name} {len(values)}" for name, values in checked.items())
        raise ValueError(f"scores: wanted the same questions for every arm, found {counts}")
    return checked


def _leave_out(scores: dict[str, Floats], weights: Floats | None) -> tuple[dict[str, Floats], Floats | None]:
    """Return scores and weights without the questions of weight 0, as if nobody had asked them; mean weight 1."""
    if weights is None:
        return scores, None
    counts = weights > 0
    if not counts.any():
        raise ValueError("weights: wanted one above 0, found none")
    kept = weights[counts]
    return {name: values[counts] for name, values in scores.items()}, kept / kept.mean()


def _check_scores(values: Floats) -> Floats:
    """Return scores as float64, or say what is wrong with them."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores: wanted one row of at least one number, found shape {scores.shape}")
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError("scores: wanted numbers from 0 to 1, found others")
    return scores
