"""Planted arms, whose right verdict is known: it is found, and wrong ones are as rare as the intervals promise."""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from core.errors import ConfigError
from evaluation.decision import ArmScores, DecisionConfig, Order, Outcome, Verdict, decide

FEW_SETS = 300 if os.environ.get("LOAM_TEST_FULL") else 40
SETS = 600 if os.environ.get("LOAM_TEST_FULL") else 100
LOG = logging.getLogger(__name__)
"""Tells the counts: pytest -rP --log-level=INFO."""
QUICK = DecisionConfig(resamples=1000)
Shares = Mapping[str, Mapping[str, float]]
"""By arm and kind of question: the probability of a right answer."""

RAG: Shares = {
    "base": {"knowledge": 0.05, "style": 0.05},
    "rag": {"knowledge": 0.80, "style": 0.60},
    "fine-tuned": {"knowledge": 0.10, "style": 0.65},
    "hybrid": {"knowledge": 0.60, "style": 0.60},
}
FINE_TUNE: Shares = {
    "base": {"knowledge": 0.10, "style": 0.05},
    "rag": {"knowledge": 0.30, "style": 0.10},
    "fine-tuned": {"knowledge": 0.80, "style": 0.90},
    "hybrid": {"knowledge": 0.55, "style": 0.85},
}
HYBRID: Shares = {
    "base": {"knowledge": 0.05, "style": 0.05},
    "rag": {"knowledge": 0.80, "style": 0.10},
    "fine-tuned": {"knowledge": 0.10, "style": 0.90},
    "hybrid": {"knowledge": 0.80, "style": 0.90},
}
ALIKE: Shares = {name: {"knowledge": 0.5, "style": 0.5} for name in RAG}


def plant(shares: Shares, n: int, seed: int) -> tuple[list[ArmScores], list[str]]:
    """Answers to n questions, two thirds of them knowledge, each as hard for one arm as for another."""
    chance = np.random.default_rng(seed)
    kinds = ["style" if place % 3 == 2 else "knowledge" for place in range(n)]
    luck = chance.random(n)
    arms = []
    for name, by_kind in shares.items():
        own = np.where(chance.random(n) < 0.5, luck, chance.random(n))
        arms.append(ArmScores(name, (own < np.array([by_kind[kind] for kind in kinds])).astype(float)))
    return arms, kinds


def count_verdicts(shares: Shares, n: int, sets: int = SETS) -> Counter[str]:
    """Return how often each arm was the verdict, and how often the data did not decide."""
    verdicts = (decide(*plant(shares, n, seed), QUICK) for seed in range(sets))
    counts = Counter(str(one.arm) if one.outcome is Outcome.decided else one.outcome.value for one in verdicts)
    LOG.info("%d questions, %d sets: %s", n, sets, dict(counts))
    return counts


@pytest.mark.parametrize(("shares", "right"), [(RAG, "rag"), (FINE_TUNE, "fine-tuned"), (HYBRID, "hybrid")])
def test_the_planted_arm_is_found(shares: Shares, right: str) -> None:
    counts = count_verdicts(shares, 300, FEW_SETS)
    assert counts[right] >= 0.85 * FEW_SETS, counts
    wrong = FEW_SETS - counts[right] - counts["undecided"]
    assert wrong <= allowed(FEW_SETS), counts


@pytest.mark.parametrize(("shares", "right"), [(RAG, "rag"), (FINE_TUNE, "fine-tuned"), (HYBRID, "hybrid")])
def test_with_few_questions_a_wrong_verdict_is_as_rare_as_promised(shares: Shares, right: str) -> None:
    counts = count_verdicts(shares, 45)
    assert SETS - counts[right] - counts["undecided"] <= allowed(SETS), counts


def allowed(sets: int) -> float:
    """Return how many of so many verdicts may be wrong at 95%, with room for chance."""
    return sets * 0.05 + 2.6 * math.sqrt(sets * 0.05 * 0.95)


def test_arms_that_are_alike_are_not_told_apart() -> None:
    verdicts = [decide(*plant(ALIKE, 120, seed), QUICK) for seed in range(SETS)]
    LOG.info("alike, %d sets: %s", SETS, dict(Counter(one.outcome.value for one in verdicts)))
    assert sum(one.outcome is Outcome.undecided for one in verdicts) >= 0.9 * SETS
    assert sum("base" in one.ruled_out for one in verdicts) <= allowed(SETS)
    assert {one.arm for one in verdicts if one.outcome is Outcome.undecided and "base" in one.open} == {"base"}
    assert all(one.questions_needed is None or one.questions_needed >= 120 for one in verdicts if "base" in one.open)


def test_with_very_many_questions_what_gains_nothing_is_out() -> None:
    arms, kinds = plant(ALIKE, 6000, 0)
    verdict = decide(arms, kinds, QUICK)
    assert (verdict.outcome, verdict.arm) == (Outcome.decided, "base")
    assert "gains less than 0.05" in verdict.ruled_out["hybrid"]


def test_a_small_gain_is_not_worth_a_more_demanding_arm() -> None:
    shares: Shares = {"rag": {"knowledge": 0.70, "style": 0.70}, "hybrid": {"knowledge": 0.72, "style": 0.72}}
    counts = count_verdicts(shares, 2000, 30)
    assert counts["hybrid"] == 0, counts
    wide = decide(*plant(shares, 2000, 1), DecisionConfig(resamples=1000, margin=0.2))
    assert (wide.outcome, wide.arm) == (Outcome.decided, "rag")


def test_an_arm_that_is_out_puts_no_other_out() -> None:
    luck = (np.arange(2000) + 0.5) / 2000  # each arm is right wherever a weaker one is
    arms = [ArmScores(name, (luck < share).astype(float))
            for name, share in (("rag", 0.5), ("fine-tuned", 0.55), ("hybrid", 0.595))]  # fmt: skip
    verdict = decide(arms, ["knowledge"] * 2000, DecisionConfig(resamples=1000, margin=0.1))
    assert verdict.ruled_out.keys() == {"fine-tuned"}  # surely within 0.1 of RAG
    gain = verdict.compare("rag", "hybrid")  # the hybrid is within 0.1 of that one, but may gain more over RAG
    assert gain is not None
    assert gain.low < 0.1 < gain.high
    assert (verdict.outcome, verdict.open) == (Outcome.undecided, ["rag", "hybrid"])


def test_what_became_of_an_arm_is_said_as_the_outcome_is() -> None:
    arms, kinds = plant(RAG, 300, 3)
    decided = decide(arms, kinds, QUICK)
    assert [decided.name_state(name) for name in ("base", "rag", "hybrid")] == ["out", "the verdict", "out"]
    few = decide([ArmScores("rag", np.ones(12)), ArmScores("base", np.zeros(12))], ["knowledge"] * 12, QUICK)
    assert (few.name_state("base"), few.name_state("rag")) == ("out", "open")
    useless = decide([ArmScores("rag", np.zeros(50))], ["knowledge"] * 50, QUICK)
    assert useless.name_state("rag") == "not good enough"


def test_noise_of_a_judge_does_not_make_wrong_verdicts() -> None:
    chance = np.random.default_rng(11)
    found: Counter[str] = Counter()
    for _ in range(SETS):
        ease = chance.random(150)
        arms = [
            ArmScores(name, np.clip(gain + 0.4 * ease + chance.normal(0, 0.25, 150), 0, 1))
            for name, gain in (("rag", 0.4), ("fine-tuned", 0.2), ("hybrid", 0.4))
        ]
        verdict = decide(arms, ["knowledge"] * 150, QUICK)
        found[str(verdict.arm) if verdict.outcome is Outcome.decided else "undecided"] += 1
    assert found["fine-tuned"] + found["hybrid"] <= allowed(SETS), found
    assert found["rag"] + found["undecided"] >= SETS - allowed(SETS), found


def test_a_margin_and_a_runner_up_are_named() -> None:
    verdict = decide(*plant(RAG, 300, 3), QUICK)
    assert verdict.runner_up == "hybrid"
    lead = verdict.compare("hybrid", "rag")
    assert lead is not None
    back = verdict.compare("rag", "hybrid")
    assert back is not None
    assert 0 < lead.low < lead.difference < lead.high
    assert (back.difference, back.low, back.high) == (-lead.difference, -lead.high, -lead.low)
    assert verdict.compare("rag", "raft-hybrid") is None


def test_cost_decides_between_equals_where_it_is_asked_to() -> None:
    arms, kinds = plant(
        {"rag": {"knowledge": 0.7, "style": 0.7}, "fine-tuned": {"knowledge": 0.7, "style": 0.7}}, 6000, 0
    )
    priced = [ArmScores(arm.name, arm.scores, monthly_usd=usd) for arm, usd in zip(arms, (400.0, 90.0), strict=True)]
    assert decide(priced, kinds, QUICK).arm == "rag"
    by_cost = decide(priced, kinds, DecisionConfig(resamples=1000, order=Order.cost))
    assert (by_cost.outcome, by_cost.arm) == (Outcome.decided, "fine-tuned")
    limited = decide(priced, kinds, DecisionConfig(resamples=1000, max_monthly_usd=100))
    assert limited.arm == "fine-tuned"
    assert "too dear: 400 USD a month" in limited.ruled_out["rag"]
    with pytest.raises(ConfigError, match="cost of every arm, found none for rag, fine-tuned"):
        decide(arms, kinds, DecisionConfig(order=Order.cost))


def test_what_is_too_slow_is_out_whatever_its_quality() -> None:
    arms, kinds = plant(RAG, 300, 3)
    timed = [ArmScores(arm.name, arm.scores, np.full(20, 9.0 if arm.name == "rag" else 1.0)) for arm in arms]
    verdict = decide(timed, kinds, DecisionConfig(resamples=1000, max_latency_s=2.0))
    assert verdict.arm == "hybrid"
    assert verdict.ruled_out["rag"] == "too slow: 95% of the answers within 9.00 s, and the limit is 2 s"


def test_weights_of_kinds_can_turn_the_verdict() -> None:
    shares = {name: dict(by_kind) for name, by_kind in HYBRID.items() if name != "hybrid"}
    arms, kinds = plant(shares, 300, 0)
    style = decide(arms, kinds, DecisionConfig(resamples=1000, kind_weights={"style": 1}))
    facts = decide(arms, kinds, DecisionConfig(resamples=1000, kind_weights={"knowledge": 1}))
    assert (style.arm, facts.arm) == ("fine-tuned", "rag")
    plain = decide(arms, kinds, QUICK)
    assert plain.arm == "rag"
    tipping = next(one for one in plain.tippings if one.kind == "style")
    assert tipping.arm == "fine-tuned"
    heavier = {"style": tipping.share + 0.02, "knowledge": 0.98 - tipping.share}
    assert _leader(decide(arms, kinds, DecisionConfig(resamples=1000, kind_weights=heavier))) == "fine-tuned"
    lighter = {"style": tipping.share - 0.02, "knowledge": 1.02 - tipping.share}
    assert _leader(decide(arms, kinds, DecisionConfig(resamples=1000, kind_weights=lighter))) == "rag"
    with pytest.raises(ConfigError, match="above 0 for one of knowledge, style"):
        decide(arms, kinds, DecisionConfig(kind_weights={"changed": 1}))


def test_questions_without_weight_do_not_count() -> None:
    kinds = ["style"] * 6 + ["knowledge"] * 60
    arms = [ArmScores("base", np.zeros(66)), ArmScores("rag", np.ones(66))]
    verdict = decide(arms, kinds, DecisionConfig(resamples=1000, kind_weights={"style": 1}))
    assert (verdict.outcome, verdict.n) == (Outcome.undecided, 6)
    assert verdict.means["rag"].low < 0.7  # six right answers, not sixty-six
    assert [pair.comparison.n for pair in verdict.pairs] == [6]


def test_one_kind_may_have_all_the_weight_however_many_questions_share_it() -> None:
    for n in range(24, 54):
        verdict = decide(*plant(RAG, n, n), DecisionConfig(resamples=1000, kind_weights={"knowledge": 0.7}))
        assert "knowledge" not in {tipping.kind for tipping in verdict.tippings}


def _leader(verdict: Verdict) -> str:
    return max(verdict.means, key=lambda name: verdict.means[name].mean)


def test_kinds_name_their_own_leader_and_how_far_it_leads() -> None:
    shares = {name: dict(by_kind) for name, by_kind in HYBRID.items() if name != "hybrid"}
    verdict = decide(*plant(shares, 300, 0), QUICK)
    style = next(one for one in verdict.kinds if one.kind == "style")
    assert (style.n, style.leader) == (100, "fine-tuned")
    assert style.lead is not None
    assert style.lead.low > 0.5
    knowledge = next(one for one in verdict.kinds if one.kind == "knowledge")
    assert (knowledge.leader, knowledge.lead) == ("rag", None)


def test_too_few_questions_decide_nothing() -> None:
    arms = [ArmScores("rag", np.ones(12)), ArmScores("base", np.zeros(12))]
    verdict = decide(arms, ["knowledge"] * 12, QUICK)
    assert (verdict.outcome, verdict.arm, verdict.open) == (Outcome.undecided, "rag", ["rag"])
    assert verdict.questions_needed == 20


def test_too_few_wrong_answers_are_no_proof_that_no_arm_will_do() -> None:
    for n, outcome in ((1, Outcome.undecided), (19, Outcome.undecided), (20, Outcome.none)):
        arms = [ArmScores(name, np.zeros(n)) for name in ("base", "rag")]
        for config in (QUICK, DecisionConfig(resamples=1000, min_quality=0.9)):
            assert decide(arms, ["knowledge"] * n, config).outcome is outcome


def test_no_arm_is_recommended_where_none_is_good_enough() -> None:
    useless = decide([ArmScores("rag", np.zeros(50)), ArmScores("base", np.zeros(50))], ["knowledge"] * 50, QUICK)
    assert (useless.outcome, useless.arm) == (Outcome.none, None)
    poor = decide(*plant(RAG, 300, 0), DecisionConfig(resamples=1000, min_quality=0.95))
    assert (poor.outcome, poor.arm) == (Outcome.none, None)
    assert decide(*plant(RAG, 300, 0), DecisionConfig(resamples=1000, min_quality=0.7)).arm == "rag"


def test_one_arm_alone_is_the_verdict_of_its_own() -> None:
    verdict = decide([ArmScores("rag", np.ones(30))], ["knowledge"] * 30, QUICK)
    assert (verdict.outcome, verdict.arm, verdict.pairs, verdict.runner_up) == (Outcome.decided, "rag", [], None)


def test_the_number_of_questions_that_would_decide_is_about_right() -> None:
    shares: Shares = {"rag": {"knowledge": 0.5, "style": 0.5}, "hybrid": {"knowledge": 0.64, "style": 0.64}}
    arms, kinds = plant(shares, 60, 4)
    verdict = decide(arms, kinds, QUICK)
    assert verdict.outcome is Outcome.undecided
    assert verdict.questions_needed is not None
    repeats = math.ceil(1.2 * verdict.questions_needed / 60)
    more = [ArmScores(arm.name, np.tile(arm.scores, repeats)) for arm in arms]
    assert decide(more, kinds * repeats, QUICK).outcome is Outcome.decided


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(ConfigError) as fault:
        DecisionConfig(level=1.5, margin=-1, resamples=10, kind_weights={"style": -1})
    for key in ("level", "margin", "resamples", "kind_weights"):
        assert f"decision.{key}" in fault.value.message


@pytest.mark.parametrize(
    ("arms", "kinds"),
    [([], []), ([ArmScores("rag", np.ones(2))] * 2, ["a", "a"]), ([ArmScores("rag", np.ones(2))], ["a"])],
)
def test_arms_that_cannot_be_compared_are_refused(arms: list[ArmScores], kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        decide(arms, kinds, QUICK)
