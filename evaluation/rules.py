"""The written rules: which arm the facts of a situation speak for, before anything is measured.

They are a second opinion beside the measured verdict, and what there is to go by while there are no questions yet.
Each rule names what it rests on, and one that does not know its fact says so. Does not know any measurement
but the arm that a verdict named.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from enum import Enum

from core.errors import ConfigError

FEW_EXAMPLES = 50
"""Below it, a fine-tune has too little to learn from."""
MANY_EXAMPLES = 500
"""From it on, a fine-tune can be expected to hold a format or a tone."""
FEW_QUERIES_A_MONTH = 10_000
MANY_QUERIES_A_MONTH = 100_000
LARGE_BASE_DOCUMENTS = 1_000


class Side(Enum):
    """What a rule speaks for."""

    rag = "RAG"
    fine_tune = "fine-tune"
    not_fine_tune = "no fine-tune"
    nothing = "neither"
    unknown = "not known"


@dataclass(slots=True)
class Situation:
    """What a user says about the task; None where it is not known.

    Attributes:
        changes_per_month: How often the knowledge changes a month; 0.1 is about once a year.
        needs_citations: Whether answers must name their source.
        needs_format: Whether answers must keep a format or a tone.
        prompt_keeps_format: Whether instructions alone make the base model keep it.
        examples: Good examples of question and answer at hand, for training.
        is_latency_critical: Whether a second more or less matters.
        documents: Documents that hold the knowledge.
        queries_per_month: Questions a month.
    """

    changes_per_month: float | None = None
    needs_citations: bool | None = None
    needs_format: bool | None = None
    prompt_keeps_format: bool | None = None
    examples: int | None = None
    is_latency_critical: bool | None = None
    documents: int | None = None
    queries_per_month: int | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        counts = {name: getattr(self, name) for name in
                  ("changes_per_month", "examples", "documents", "queries_per_month")}  # fmt: skip
        faults = [f"situation.{name}: wanted a number of at least 0, found {count}" for name, count in counts.items()
                  if count is not None and not 0 <= count < math.inf]  # fmt: skip
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says.

    Attributes:
        rule: Its name.
        side: What it speaks for.
        reason: Why, with the fact that it rests on.
    """

    rule: str
    side: Side
    reason: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What the rules say together.

    Attributes:
        arm: The arm that they speak for.
        findings: One a rule, in the order of the rules.
        summary: In a sentence or two.
        unknown: Facts of the situation that would sharpen it.
    """

    arm: str
    findings: list[Finding]
    summary: str
    unknown: list[str]


def advise(situation: Situation) -> Advice:
    """Apply every rule and say which arm they speak for.

    A need for documents and a need for a fine-tune together make the hybrid; a fine-tune without enough examples is not
    advised, whatever speaks for it.
    """
    findings = [
        judge_change(situation),
        judge_citations(situation),
        judge_format(situation),
        judge_examples(situation),
        judge_latency(situation),
        judge_volume(situation),
    ]
    sides = [finding.side for finding in findings]
    needs_rag = Side.rag in sides
    wants_tune = Side.fine_tune in sides
    can_tune = Side.not_fine_tune not in sides
    unknown = [field.name for field in fields(Situation) if getattr(situation, field.name) is None]
    if needs_rag and wants_tune and can_tune:
        arm, summary = "hybrid", "Both: a fine-tune for the form, documents for the facts."
    elif needs_rag:
        arm, summary = "rag", "RAG: the documents hold what is asked, and nothing here needs a fine-tune."
        if wants_tune and not can_tune:
            summary = "RAG with good instructions: a fine-tune would help, but there is too little to train on."
    elif wants_tune and can_tune:
        arm, summary = "fine-tuned", "A fine-tune: the knowledge stands still, and the form or the speed matters."
    elif wants_tune:
        arm = "base-long"
        summary = "Long instructions with the base model, until there are examples enough for a fine-tune."
    else:
        arm, summary = "base-long", "Nothing here needs RAG or a fine-tune: start with instructions, and measure."
    return Advice(arm, findings, summary, unknown)


def judge_change(situation: Situation) -> Finding:
    """Knowledge that changes more than once a month belongs in documents."""
    rate = situation.changes_per_month
    if rate is None:
        return Finding("change", Side.unknown, "How often the knowledge changes is not known.")
    if rate > 1:
        return Finding(
            "change", Side.rag, f"The knowledge changes {rate:g} times a month: a fine-tune would be behind."
        )
    often = "once" if rate == 1 else f"{rate:g} times"
    return Finding("change", Side.nothing, f"The knowledge changes {often} a month: either can keep up.")


def judge_citations(situation: Situation) -> Finding:
    """Only an answer from documents can cite them."""
    if situation.needs_citations is None:
        return Finding("citations", Side.unknown, "Whether answers must name their sources is not known.")
    if situation.needs_citations:
        return Finding("citations", Side.rag, "Answers must name their sources: weights cannot cite.")
    return Finding("citations", Side.nothing, "Sources need not be named.")


def judge_format(situation: Situation) -> Finding:
    """A consistent format or tone asks for a fine-tune, or for instructions where they suffice."""
    if situation.needs_format is None:
        return Finding("format", Side.unknown, "Whether answers must keep a format or a tone is not known.")
    if not situation.needs_format:
        return Finding("format", Side.nothing, "No format or tone has to be kept.")
    if situation.prompt_keeps_format:
        return Finding("format", Side.nothing, "Instructions already make the base model keep the format.")
    return Finding(
        "format", Side.fine_tune, "Answers must keep a format or a tone: examples teach it more surely than words."
    )


def judge_examples(situation: Situation) -> Finding:
    """Under 50 examples: none; 50 and more: possible; 500 and more: enough."""
    count = situation.examples
    if count is None:
        return Finding("examples", Side.unknown, "How many examples there are is not known.")
    if count < FEW_EXAMPLES:
        return Finding(
            "examples", Side.not_fine_tune, f"{count} examples: under {FEW_EXAMPLES} a fine-tune learns little."
        )
    if count < MANY_EXAMPLES:
        reason = f"{count} examples: a fine-tune can learn a form; measure before trusting it."
        return Finding("examples", Side.nothing, reason)
    return Finding("examples", Side.nothing, f"{count} examples: enough for a fine-tune, where something asks for one.")


def judge_latency(situation: Situation) -> Finding:
    """Passages make prompts long; a fine-tune answers from a short one."""
    if situation.is_latency_critical is None:
        return Finding("latency", Side.unknown, "Whether seconds matter is not known.")
    if situation.is_latency_critical:
        return Finding("latency", Side.fine_tune, "Seconds matter: a fine-tune needs no search and no long prompt.")
    return Finding("latency", Side.nothing, "A second more or less does not matter.")


def judge_volume(situation: Situation) -> Finding:
    """A large base and few questions: RAG; many questions and knowledge that stands still: a fine-tune."""
    queries, documents, rate = situation.queries_per_month, situation.documents, situation.changes_per_month
    if queries is None:
        return Finding("volume", Side.unknown, "How much is asked is not known.")
    if documents is not None and documents >= LARGE_BASE_DOCUMENTS and queries <= FEW_QUERIES_A_MONTH:
        reason = (
            f"{documents:,} documents and {queries:,} questions a month: training on all of it for so few does not pay."
        )
        return Finding("volume", Side.rag, reason)
    if queries >= MANY_QUERIES_A_MONTH and rate is not None and rate <= 1:
        reason = f"{queries:,} questions a month on knowledge that stands still: short prompts pay for the training."
        return Finding("volume", Side.fine_tune, reason)
    return Finding("volume", Side.nothing, f"{queries:,} questions a month speak for neither.")


def compare_with_verdict(
    advice: Advice, arm: str | None, open_arms: Sequence[str], measured: Collection[str], *, is_decided: bool
) -> str:
    """Say in a sentence whether the rules and the measured verdict agree.

    Args:
        advice: What the rules say.
        arm: The verdict's arm, or None where no arm was good enough.
        open_arms: The arms that the data left open.
        measured: Every arm that was measured.
        is_decided: Whether the data decided for `arm`.
    """
    if arm is None:
        return f"The rules say {advice.arm}; measured, no arm is good enough."
    if advice.arm not in measured:
        word = "decides for" if is_decided else "does not decide; until it does:"
        return f"The rules say {advice.arm}, which was not measured. Of what was, the data {word} {arm}."
    if advice.arm == arm and is_decided:
        return f"The rules and the measurement agree: {arm}."
    if advice.arm in open_arms and not is_decided:
        return f"The rules say {advice.arm}, which is among what the data leaves open: {', '.join(open_arms)}."
    if not is_decided:
        return f"The rules say {advice.arm}; the data does not decide, and leaves open: {', '.join(open_arms)}."
    return (
        f"They do not agree: the rules say {advice.arm}, the measurement says {arm}. The measurement is of your data."
    )
