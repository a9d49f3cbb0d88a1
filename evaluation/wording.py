"""The verdict in sentences: what to use, by how much, why, and what would change it.

Every sentence is made from figures of the verdict; none is kept ready for a hoped-for result. Does not decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.cost import ArmCost, BreakEven
from evaluation.decision import (
    DOCUMENT_ARMS,
    MIN_KIND_QUESTIONS,
    MIN_QUESTIONS,
    TUNED_ARMS,
    Outcome,
    Verdict,
    describe,
    turn,
)

TITLES = {
    "base": "the base model as it is",
    "base-long": "the base model with long instructions",
    "nearest": "the nearest passage, without a model",
    "rag": "RAG",
    "fine-tuned": "a fine-tuned model",
    "hybrid": "the hybrid (a fine-tuned model over retrieved passages)",
    "raft-hybrid": "the RAFT hybrid (fine-tuned to read retrieved passages)",
}


@dataclass(frozen=True, slots=True)
class Wording:
    """A verdict in words.

    Attributes:
        headline: What to use, or that the data does not decide.
        advice: What that means for fine-tuning.
        reasons: Why, the strongest first.
        would_change: What would change it.
    """

    headline: str
    advice: str
    reasons: list[str]
    would_change: list[str]


def word_verdict(
    verdict: Verdict,
    costs: Sequence[ArmCost] = (),
    monthly_answers: int | None = None,
    break_evens: Sequence[BreakEven] = (),
) -> Wording:
    """Put a verdict into words.

    Args:
        verdict: What was decided.
        costs: Of the arms, or nothing.
        monthly_answers: The user's volume; needed with `costs`.
        break_evens: Volumes at which costs change places.
    """
    reasons = _word_reasons(verdict)
    if costs and monthly_answers and verdict.arm is not None:
        reasons += _word_costs(verdict, costs, monthly_answers)
    return Wording(_word_headline(verdict), _word_advice(verdict), reasons, _word_changes(verdict, break_evens))


def name_arm(arm: str) -> str:
    """Return an arm's name for a sentence."""
    return TITLES.get(arm, arm)


def _word_headline(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.none:
        if not verdict.open:
            return "No arm keeps the limits on time and cost that were set: each is out for that, whatever its quality."
        best = max(verdict.means, key=lambda name: verdict.means[name].mean)
        return (
            f"No arm is good enough to be recommended: the best, {name_arm(best)}, is right in "
            f"{_share(verdict, best)} of {verdict.n} questions."
        )
    arm = str(verdict.arm)
    if verdict.outcome is Outcome.decided:
        return (
            f"Use {name_arm(arm)}: right in {_share(verdict, arm)} of {verdict.n} questions{_word_lead(verdict, arm)}."
        )
    if verdict.n < MIN_QUESTIONS:
        return (
            f"The data does not decide: {verdict.n} questions are too few for any verdict, and {MIN_QUESTIONS} are the "
            f"least. Until then: {name_arm(arm)}."
        )
    names = " and ".join([", ".join(verdict.open[:-1]), verdict.open[-1]])
    return (
        f"The data does not decide between {names}. Until it does, use {name_arm(arm)}: it is the simplest or "
        f"cheapest of them, and nothing here shows that more is worth it."
    )


def _share(verdict: Verdict, arm: str) -> str:
    interval = verdict.means[arm]
    return f"{interval.mean:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def _word_lead(verdict: Verdict, arm: str) -> str:
    other = verdict.runner_up
    lead = verdict.compare(other, arm) if other is not None else None
    if other is None or lead is None:
        return ""
    if lead.difference < 0:
        return f"; {name_arm(other)} gains {describe(turn(lead))}, surely less than the margin of {verdict.margin:.2f}"
    return f", {describe(lead)} against {name_arm(other)}, the next"


def _word_advice(verdict: Verdict) -> str:
    """Return what the verdict means for fine-tuning and for documents."""
    if verdict.arm is None and not verdict.open:
        return "Raise a limit, or take a faster or cheaper machine or model."
    if verdict.arm is None:
        return "Mend the questions, the documents or the model first; see what the answers say."
    if not any(arm in TUNED_ARMS for arm in verdict.means):
        return "No fine-tuned arm was measured, so nothing is said about fine-tuning."
    if verdict.arm not in TUNED_ARMS:
        return _advise_against_tuning(verdict, verdict.arm)
    return _advise_tuning(verdict, verdict.arm) if verdict.outcome is Outcome.decided else ""


def _advise_against_tuning(verdict: Verdict, arm: str) -> str:
    tuned = [other for other in verdict.means if other in TUNED_ARMS]
    if verdict.n < MIN_QUESTIONS or any(other in verdict.open for other in tuned):
        return "Do not fine-tune yet: no fine-tuned arm has been shown to be better."
    kept = "" if all(verdict.compare(arm, other) for other in tuned) else " that keeps the limits"
    return f"Do not fine-tune for this: no fine-tuned arm{kept} is better here by a margin that matters."


def _advise_tuning(verdict: Verdict, arm: str) -> str:
    if arm in DOCUMENT_ARMS:
        parts = [verdict.means.get(part) for part in ("rag", "fine-tuned")]
        is_more = all(part is not None and part.mean < verdict.means[arm].mean for part in parts)
        return f"Fine-tune, and keep the documents{': neither alone does as well' if is_more else ''}."
    reading = [other for other in verdict.means if other in DOCUMENT_ARMS]
    if not reading:
        return "Fine-tune. No arm with documents was measured, so nothing is said about them."
    if not all(verdict.compare(arm, other) for other in reading):
        return "Fine-tune: of the arms with documents, those that keep the limits add nothing that is worth them."
    return "Fine-tune: here, documents add nothing that is worth them."


def _word_reasons(verdict: Verdict) -> list[str]:
    order = sorted(verdict.ruled_out, key=lambda name: -verdict.means[name].mean)
    reasons = [f"{name} is out: {verdict.ruled_out[name]}." for name in order]
    for first, second in zip(verdict.open, verdict.open[1:], strict=False):
        lead = verdict.compare(first, second)
        if lead is not None:
            reasons.append(f"{second} against {first} is open: {describe(lead)}.")
    for finding in verdict.kinds:
        if finding.n >= MIN_KIND_QUESTIONS:
            parts = ", ".join(f"{name} {interval.mean:.0%}" for name, interval in finding.means.items())
            reasons.append(f"On the {finding.n} {finding.kind} questions: {parts}.")
    return reasons


def _word_costs(verdict: Verdict, costs: Sequence[ArmCost], monthly_answers: int) -> list[str]:
    """Return how the arm's cost compares with the cheapest of those that are not out."""
    by_arm = {cost.arm: cost.local.monthly_usd(monthly_answers) for cost in costs}
    arm = str(verdict.arm)
    if arm not in by_arm:
        return []
    reasons = [f"At {monthly_answers:,} answers a month {arm} costs {by_arm[arm]:,.2f} USD on the machine described."]
    cheaper = [name for name in verdict.open if name != arm and by_arm.get(name, by_arm[arm]) < by_arm[arm] - 0.005]
    reasons += [f"{name}, which is open, would cost {by_arm[name]:,.2f} USD." for name in cheaper]
    return reasons


def _word_changes(verdict: Verdict, break_evens: Sequence[BreakEven]) -> list[str]:
    changes = []
    if verdict.questions_needed is not None:
        changes.append(
            f"More questions: about {verdict.questions_needed:,} like these would decide, if the differences stay what "
            "they are."
        )
    elif verdict.outcome is Outcome.undecided:
        changes.append(
            "Another margin: the differences are too near to nothing and to the margin for any number of questions."
        )
    changes += [
        (
            f"Other questions: if {tipping.kind} questions were at least {tipping.share:.0%} of all that count (they "
            f"are {tipping.share_now:.0%}), {tipping.arm} would have the higher mean."
        )
        for tipping in verdict.tippings
    ]
    changes += [
        f"For {finding.kind} questions alone {finding.leader} leads: {describe(finding.lead)}."
        for finding in verdict.kinds
        if finding.lead is not None and finding.lead.low > 0
    ]
    changes += [
        f"Volume: above {one.volume:,} answers a month {one.cheaper_above} is cheaper than {one.cheaper_below}."
        for one in break_evens
        if one.volume is not None and _concerns(one, verdict.arm)
    ]
    return changes


def _concerns(one: BreakEven, arm: str | None) -> bool:
    """Tell whether a break-even is about an arm, and about more than which of two arms spends less power."""
    sides = [side.split(", ") for side in (one.cheaper_below, one.cheaper_above)]
    return any(name == arm for name, _ in sides) and any(place != "local" for _, place in sides)
