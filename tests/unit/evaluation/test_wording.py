"""The verdict's sentences say what the figures say, in each of the ways a comparison can end."""

import numpy as np
import pytest

from evaluation.cost import BreakEven
from evaluation.decision import ArmScores, DecisionConfig, decide
from evaluation.wording import name_arm, word_verdict

QUICK = DecisionConfig(resamples=1000)


def score(*rights: int, n: int = 100) -> list[np.ndarray]:
    return [np.array([1.0] * right + [0.0] * (n - right)) for right in rights]


def test_a_decided_verdict_names_arm_share_and_margin() -> None:
    base, rag = score(5, 80)
    wording = word_verdict(decide([ArmScores("base", base), ArmScores("rag", rag)], ["knowledge"] * 100, QUICK))
    assert wording.headline.startswith("Use RAG: right in 80% (")
    assert "+0.75 (+0.6" in wording.headline
    assert "against the base model as it is, the next" in wording.headline
    assert wording.advice == "No fine-tuned arm was measured, so nothing is said about fine-tuning."
    assert wording.reasons[0].startswith("base is out: rag is better by +0.75")


def test_an_open_comparison_names_the_arms_and_the_questions_needed() -> None:
    base, rag, hybrid = score(5, 50, 62)
    arms = [ArmScores("base", base), ArmScores("rag", rag), ArmScores("hybrid", np.roll(hybrid, 25))]
    wording = word_verdict(decide(arms, ["knowledge"] * 100, QUICK))
    assert "does not decide between rag and hybrid" in wording.headline
    assert "Until it does, use RAG" in wording.headline
    assert any(reason.startswith("hybrid against rag is open: +0.12") for reason in wording.reasons)
    assert any(change.startswith("More questions: about ") for change in wording.would_change)


def test_too_few_questions_are_said_to_be_too_few() -> None:
    base, rag = score(0, 10, n=10)
    wording = word_verdict(decide([ArmScores("base", base), ArmScores("rag", rag)], ["knowledge"] * 10, QUICK))
    assert "10 questions are too few for any verdict" in wording.headline
    arms = [ArmScores("rag", rag), ArmScores("fine-tuned", base)]
    few = word_verdict(decide(arms, ["knowledge"] * 10, QUICK))
    assert few.advice == "Do not fine-tune yet: no fine-tuned arm has been shown to be better."


def test_a_better_mean_that_gains_too_little_is_not_called_the_next() -> None:
    rag, hybrid = score(1400, 1420, n=2000)
    arms = [ArmScores("rag", rag), ArmScores("hybrid", hybrid)]
    wording = word_verdict(decide(arms, ["knowledge"] * 2000, QUICK))
    assert wording.headline.startswith("Use RAG: right in 70%")
    assert "; the hybrid (a fine-tuned model over retrieved passages) gains +0.01 (" in wording.headline
    assert wording.headline.endswith("surely less than the margin of 0.05.")


def test_a_tie_is_a_difference_of_nothing_from_either_side() -> None:
    alike = score(50)[0]
    wording = word_verdict(decide([ArmScores("base", alike), ArmScores("rag", alike)], ["knowledge"] * 100, QUICK))
    assert "+0.00 (-0.02 to +0.02) against RAG, the next" in wording.headline


@pytest.mark.parametrize(
    ("rights", "latency_s", "words"),
    [
        ({"base": 5, "fine-tuned": 80}, 1.0, "Fine-tune. No arm with documents was measured"),
        ({"rag": 5, "fine-tuned": 80}, 1.0, "Fine-tune: here, documents add nothing"),
        ({"rag": 5, "fine-tuned": 20, "hybrid": 80}, 1.0, "keep the documents: neither alone does as well."),
        ({"base": 5, "hybrid": 80}, 1.0, "Fine-tune, and keep the documents."),
        ({"rag": 80, "hybrid": 20}, 1.0, "no fine-tuned arm is better here"),
        ({"rag": 5, "fine-tuned": 80, "hybrid": 95}, 9.0, "documents, those that keep the limits add nothing"),
        ({"rag": 50, "hybrid": 90}, 9.0, "no fine-tuned arm that keeps the limits is better here"),
    ],
)
def test_advice_says_no_more_than_was_measured(rights: dict[str, int], latency_s: float, words: str) -> None:
    scores = score(*rights.values())
    arms = [
        ArmScores(name, own, latency_s=np.array([latency_s if name == "hybrid" else 1.0]))
        for name, own in zip(rights, scores, strict=True)
    ]
    config = DecisionConfig(resamples=1000, max_latency_s=5.0)
    assert words in word_verdict(decide(arms, ["knowledge"] * 100, config)).advice


def test_limits_that_nothing_keeps_are_not_called_a_lack_of_quality() -> None:
    (rag,) = score(80)
    arms = [ArmScores("rag", rag, latency_s=np.full(10, 3.0))]
    verdict = decide(arms, ["knowledge"] * 100, DecisionConfig(resamples=1000, max_latency_s=2.0))
    wording = word_verdict(verdict)
    assert wording.headline.startswith("No arm keeps the limits on time and cost")
    assert wording.advice.startswith("Raise a limit")
    assert wording.reasons[0] == "rag is out: too slow: 95% of the answers within 3.00 s, and the limit is 2 s."


def test_volumes_that_concern_the_arm_are_named_and_others_are_not() -> None:
    base, rag = score(5, 80)
    verdict = decide([ArmScores("base", base), ArmScores("rag", rag)], ["knowledge"] * 100, QUICK)
    volumes = [
        BreakEven("rag, hosted", "rag, local", 5000),
        BreakEven("base, hosted", "base, local", 777),
        BreakEven("rag, local", "base, local", None),
    ]
    changes = word_verdict(verdict, break_evens=volumes).would_change
    assert "Volume: above 5,000 answers a month rag, local is cheaper than rag, hosted." in changes
    assert not any("777" in change for change in changes)


@pytest.mark.parametrize(("arm", "words"), [("rag", "RAG"), ("other", "other")])
def test_arms_have_names_for_sentences(arm: str, words: str) -> None:
    assert name_arm(arm) == words
