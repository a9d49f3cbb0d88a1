"""Which arm to use, from the scores of each on the same questions: the arm, or the arms between which the data is open.

The rule. Arms stand in order from the simplest to the most demanding (or by cost). Of each two arms one comparison is
made, with intervals that hold for all pairs together. A simpler arm is out when a more demanding one is better beyond
chance and by at least `margin`. A more demanding arm is out when a simpler one that is not out itself is surely within
`margin` of it. Where one arm is left, it is the verdict; where several are left, the data does not decide, and until it
does the simplest of them is what to use: what costs more must show that it is worth it.

All intervals hold together with probability `level`. While they do, no arm is put out wrongly, so a decided verdict is
wrong in at most 1 - level of all cases. Does not know how answers were scored, or how a verdict is worded (wording.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import numpy as np

from core.errors import ConfigError
from evaluation.resampling import Comparison, Floats, Interval, Pair, bootstrap_means, compare_all

MIN_QUESTIONS = 20
"""Fewer questions decide nothing here: one more or less would turn everything."""
MIN_KIND_QUESTIONS = 8
"""Fewer questions of a kind are shown, but nothing is concluded from them."""
SIMPLEST_FIRST = ("base", "base-long", "nearest", "rag", "fine-tuned", "hybrid", "raft-hybrid")
"""The order of the arms by what has to be built and kept up."""
TUNED_ARMS = frozenset({"fine-tuned", "hybrid", "raft-hybrid"})
DOCUMENT_ARMS = frozenset({"nearest", "rag", "hybrid", "raft-hybrid"})


class Order(Enum):
    """Which of two equally good arms is preferred: the one with fewer parts, or the one that costs less."""

    simplicity = "simplicity"
    cost = "cost"


class Outcome(Enum):
    """How a comparison of arms ends."""

    decided = "decided"
    undecided = "undecided"
    none = "none"


@dataclass(slots=True)
class DecisionConfig:
    """What a verdict must meet.

    Attributes:
        level: Probability with which all intervals are to hold together, above 0.5 and below 1.
        margin: Smallest gain in quality (share of right answers) that is worth a more demanding arm, 0 to 1.
        order: Which of two arms is preferred where quality does not tell them apart: `simplicity` or `cost`.
        max_latency_s: Arms whose 95th percentile of seconds an answer is above it are out; null: no limit.
        max_monthly_usd: Arms that cost more a month are out; null: no limit.
        min_quality: If even the best arm is surely below it, no arm is recommended; null: no limit.
        kind_weights: How much each kind of question counts, as `{knowledge: 3, style: 1}`; kinds that are not named
            count 0; empty: every question counts alike.
        resamples: Draws of the bootstrap.
        seed: Of the draws.
    """

    level: float = 0.95
    margin: float = 0.05
    order: Order = Order.simplicity
    max_latency_s: float | None = None
    max_monthly_usd: float | None = None
    min_quality: float | None = None
    kind_weights: dict[str, float] = field(default_factory=dict)
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"decision.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("level", 0.5 < self.level < 1, "above 0.5 and below 1", self.level),
                ("margin", 0 <= self.margin <= 1, "0 to 1", self.margin),
                ("max_latency_s", self.max_latency_s is None or self.max_latency_s > 0, "above 0", self.max_latency_s),
                ("max_monthly_usd", (self.max_monthly_usd or 0) >= 0, "at least 0", self.max_monthly_usd),
                ("min_quality", 0 <= (self.min_quality or 0) <= 1, "0 to 1", self.min_quality),
                ("kind_weights", all(w >= 0 for w in self.kind_weights.values()), "at least 0", self.kind_weights),
                ("resamples", self.resamples >= 1000, "at least 1,000", self.resamples),
                ("seed", self.seed >= 0, "at least 0", self.seed),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class ArmScores:
    """What is known of one arm.

    Attributes:
        name: One of SIMPLEST_FIRST, or another name; those are taken as the most demanding.
        scores: Shape (n,): 0 to 1 for each question; the same questions in the same order for every arm.
        latency_s: Seconds of answers asked alone, or None; any number of them.
        monthly_usd: Cost at the user's volume, or None.
    """

    name: str
    scores: Floats
    latency_s: Floats | None = None
    monthly_usd: float | None = None


@dataclass(frozen=True, slots=True)
class KindFinding:
    """How the arms do on the questions of one kind.

    Attributes:
        kind: The kind.
        n: Questions of it.
        means: By arm, with an interval.
        leader: The arm with the highest mean; of equals the simplest.
        lead: Over the verdict's arm, or None where that is the leader or there is too little to compare.
    """

    kind: str
    n: int
    means: dict[str, Interval]
    leader: str
    lead: Comparison | None


@dataclass(frozen=True, slots=True)
class Tipping:
    """A weight of one kind at which another arm would have the higher mean.

    Attributes:
        kind: The kind of question.
        share: Of all weight, 0 to 1, from which on `arm` leads.
        share_now: Its share at present.
        arm: The arm that would lead.
    """

    kind: str
    share: float
    share_now: float
    arm: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the data says.

    Attributes:
        outcome: Whether one arm is left (`decided`), several (`undecided`), or none is good enough (`none`).
        arm: The arm to use: the verdict when decided, else what to use until more is known; None when no arm will do.
        open: The arms that are left, preferred ones first.
        ruled_out: For each other arm why it is out.
        means: By arm, with an interval at `level` for each alone.
        pairs: Every comparison, less demanding arm first; the intervals hold together.
        runner_up: The arm with the highest mean besides `arm`.
        kinds: By kind of question.
        tippings: Weights that would change the leader.
        questions_needed: About how many questions would tell the open arms apart, or None.
        n: Questions that count.
        level: Of all intervals together.
        margin: As it was asked for.
    """

    outcome: Outcome
    arm: str | None
    open: list[str]
    ruled_out: dict[str, str]
    means: dict[str, Interval]
    pairs: list[Pair]
    runner_up: str | None
    kinds: list[KindFinding]
    tippings: list[Tipping]
    questions_needed: int | None
    n: int
    level: float
    margin: float

    def name_state(self, arm: str) -> str:
        """Return what became of an arm: `out`, `the verdict`, `open`, or `not good enough` where none will do."""
        if arm in self.ruled_out:
            return "out"
        states = {Outcome.decided: "the verdict", Outcome.undecided: "open", Outcome.none: "not good enough"}
        return states[self.outcome]

    def compare(self, first: str, second: str) -> Comparison | None:
        """Return second minus first, or None where one of them was not compared."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair.comparison
            if (pair.first, pair.second) == (second, first):
                return turn(pair.comparison)
        return None


def turn(comparison: Comparison) -> Comparison:
    """Return a comparison seen from the other arm."""
    return Comparison(
        -comparison.difference, -comparison.high, -comparison.low, comparison.p_value, comparison.n, comparison.level
    )


def decide(arms: Sequence[ArmScores], kinds: Sequence[str], config: DecisionConfig) -> Verdict:
    """Decide between arms.

    Args:
        arms: At least one.
        kinds: The kind of each question, in the order of the scores.
        config: What the verdict must meet.

    Raises:
        ValueError: Scores and kinds differ in number, or a name comes twice.
        ConfigError: `kind_weights` gives no question any weight, or costs are to decide and some are missing.
    """
    _check_arms(arms, kinds, config)
    ordered = sort_arms(arms, config.order)
    weights = weigh_questions(kinds, config.kind_weights)
    every = {arm.name: arm.scores for arm in ordered}
    means = bootstrap_means(
        every,
        seed=config.seed,
        level=config.level,
        resamples=config.resamples,
        weights=weights if config.kind_weights else None,
    )
    ruled_out = {arm.name: reason for arm in ordered if (reason := _check_limits(arm, config))}
    eligible = [arm for arm in ordered if arm.name not in ruled_out]
    scores = {arm.name: arm.scores for arm in eligible}
    pairs = compare_all(scores, seed=config.seed, level=config.level, resamples=config.resamples, weights=weights)
    ruled_out |= _rule_out([arm.name for arm in eligible], pairs, config)
    left = [arm.name for arm in eligible if arm.name not in ruled_out]
    n = int(np.count_nonzero(weights))
    outcome = Outcome.decided if len(left) == 1 and n >= MIN_QUESTIONS else Outcome.undecided
    if not left or (n >= MIN_QUESTIONS and _is_too_bad([means[arm.name] for arm in eligible], config)):
        outcome = Outcome.none
    chosen = left[0] if outcome is not Outcome.none else None
    others = [arm.name for arm in ordered if arm.name != chosen]
    return Verdict(
        outcome=outcome,
        arm=chosen,
        open=left,
        ruled_out=ruled_out,
        means=means,
        pairs=pairs,
        runner_up=max(others, key=lambda name: means[name].mean, default=None),
        kinds=_find_kinds(ordered, kinds, chosen, config),
        tippings=_find_tippings(eligible, kinds, weights, chosen),
        questions_needed=_count_questions_needed(left, pairs, config) if outcome is Outcome.undecided else None,
        n=n,
        level=config.level,
        margin=config.margin,
    )


def sort_arms(arms: Sequence[ArmScores], order: Order) -> list[ArmScores]:
    """Return arms with the preferred ones first."""
    places = {name: place for place, name in enumerate(SIMPLEST_FIRST)}

    def place(arm: ArmScores) -> tuple[float, int]:
        cost = arm.monthly_usd if order is Order.cost and arm.monthly_usd is not None else 0.0
        return cost, places.get(arm.name, len(places))

    return sorted(arms, key=place)


def weigh_questions(kinds: Sequence[str], kind_weights: Mapping[str, float]) -> Floats:
    """Return how much each question counts, mean 1.

    Args:
        kinds: The kind of each question.
        kind_weights: By kind; empty: every question counts alike. A kind's weight is shared among its questions.
    """
    if not kind_weights:
        return np.ones(len(kinds))
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    weights = np.array([kind_weights.get(kind, 0.0) / counts[kind] for kind in kinds])
    if weights.sum() <= 0:
        found = ", ".join(sorted(counts))
        raise ConfigError(f"decision.kind_weights: wanted a weight above 0 for one of {found}; found {kind_weights}")
    normalised: Floats = weights * len(kinds) / weights.sum()
    return normalised


def _check_arms(arms: Sequence[ArmScores], kinds: Sequence[str], config: DecisionConfig) -> None:
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"arms: wanted at least one, each once; found {names}")
    for arm in arms:
        if len(arm.scores) != len(kinds):
            raise ValueError(f"{arm.name}: wanted a score for each of {len(kinds)} questions, found {len(arm.scores)}")
    unpriced = [arm.name for arm in arms if arm.monthly_usd is None]
    if unpriced and (config.order is Order.cost or config.max_monthly_usd is not None):
        raise ConfigError(f"decision: wanted the cost of every arm, found none for {', '.join(unpriced)}")


def _check_limits(arm: ArmScores, config: DecisionConfig) -> str | None:
    """Return why an arm is out whatever its quality, or None."""
    if config.max_latency_s is not None and arm.latency_s is not None and len(arm.latency_s):
        slow = float(np.quantile(arm.latency_s, 0.95, method="inverted_cdf"))  # as the report's own figure
        if slow > config.max_latency_s:
            return f"too slow: 95% of the answers within {slow:.2f} s, and the limit is {config.max_latency_s:g} s"
    if config.max_monthly_usd is not None and (arm.monthly_usd or 0.0) > config.max_monthly_usd:
        return f"too dear: {arm.monthly_usd:,.0f} USD a month, and the limit is {config.max_monthly_usd:,.0f} USD"
    return None


def _is_too_bad(means: Sequence[Interval], config: DecisionConfig) -> bool:
    """Tell whether even the best arm is useless, or surely below the quality that was asked for."""
    best = max(means, key=lambda interval: interval.mean)
    return best.mean == 0 or (config.min_quality is not None and best.high < config.min_quality)


def _rule_out(names: Sequence[str], pairs: Sequence[Pair], config: DecisionConfig) -> dict[str, str]:
    """Return the arms that are out for their quality, with the reason.

    Args:
        names: Preferred ones first.
        pairs: Earlier name first.
        config: Level and margin.
    """
    alpha = 1 - config.level
    reasons: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda one: -one.comparison.difference):
        found = pair.comparison
        is_shown = found.low > 0 and found.p_value <= alpha and found.difference >= config.margin
        if is_shown and pair.first not in reasons:
            reasons[pair.first] = f"{pair.second} is better by {describe(found)}"
    for name in names:  # simpler ones first: whether they are out themselves is known by then
        for pair in pairs:
            found = pair.comparison
            if pair.second != name or name in reasons:
                continue
            if found.high < 0 and found.p_value <= alpha:
                reasons[name] = f"{pair.first} is simpler or cheaper, and better by {describe(turn(found))}"
            elif found.high < config.margin and pair.first not in reasons:
                reasons[name] = (
                    f"it gains less than {config.margin:.2f} over {pair.first}, which is simpler or cheaper: "
                    f"{describe(found)}"
                )
    return reasons


def describe(comparison: Comparison) -> str:
    """Return a difference with its interval: `+0.12 (+0.05 to +0.19)`."""
    found, low, high = (round(end, 2) + 0.0 for end in (comparison.difference, comparison.low, comparison.high))
    return f"{found:+.2f} ({low:+.2f} to {high:+.2f})"  # a tie turned round is +0.00, too


def _find_kinds(
    arms: Sequence[ArmScores], kinds: Sequence[str], chosen: str | None, config: DecisionConfig
) -> list[KindFinding]:
    """Return how the arms do by kind; leads over the chosen arm are compared for all kinds together."""
    names = sorted(set(kinds))
    level = 1 - (1 - config.level) / len(names)
    found = []
    for kind in names:
        rows = np.array([one == kind for one in kinds])
        part = {arm.name: arm.scores[rows] for arm in arms}
        means = bootstrap_means(part, seed=config.seed, level=config.level, resamples=config.resamples)
        leader = max(part, key=lambda name: part[name].mean())
        lead = None
        n = int(rows.sum())
        if chosen is not None and leader != chosen and n >= MIN_KIND_QUESTIONS:
            pairs = compare_all(part, seed=config.seed, level=level, resamples=config.resamples)
            pair = next(one for one in pairs if {one.first, one.second} == {chosen, leader})
            lead = pair.comparison if pair.second == leader else turn(pair.comparison)
        found.append(KindFinding(kind, n, means, leader, lead))
    return found


def _find_tippings(
    arms: Sequence[ArmScores], kinds: Sequence[str], weights: Floats, chosen: str | None
) -> list[Tipping]:
    """Return, for each kind, the least share of weight from which another arm has the higher mean."""
    by_name = {arm.name: arm.scores for arm in arms}
    if chosen is None:
        return []
    found = []
    for kind in sorted(set(kinds)):
        rows = np.array([one == kind for one in kinds])
        share_now = float(weights[rows].sum() / weights.sum())
        if rows.sum() < MIN_KIND_QUESTIONS or not weights[~rows].any():  # no other kind counts
            continue
        best: Tipping | None = None
        for name, scores in by_name.items():
            gains = scores - by_name[chosen]
            inside = float(gains[rows].mean())
            outside = float(np.average(gains[~rows], weights=weights[~rows]))
            if inside > 0 > outside:
                share = outside / (outside - inside)
                if share > share_now and (best is None or share < best.share):
                    best = Tipping(kind, share, share_now, name)
        if best is not None:
            found.append(best)
    return found


def _count_questions_needed(left: Sequence[str], pairs: Sequence[Pair], config: DecisionConfig) -> int | None:
    """Return about how many questions would tell the open arms apart, if the differences stay what they are.

    An interval's width falls with the root of the number of questions. A pair is settled when it clears 0 or the
    margin, whichever is farther from the difference that was found; None where that is too near to both to say.
    """
    needed = 0
    for first, second in pairwise(left):
        found = next(pair.comparison for pair in pairs if (pair.first, pair.second) == (first, second))
        if found.difference >= config.margin:
            distance, half = found.difference, found.difference - found.low
        else:
            distance, half = config.margin - found.difference, found.high - found.difference
        if distance < 0.005:
            return None
        needed = max(needed, math.ceil(found.n * max(1.0, half / distance) ** 2))
    return max(needed, MIN_QUESTIONS) if needed else MIN_QUESTIONS
