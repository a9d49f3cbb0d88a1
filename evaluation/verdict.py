"""From saved answers to a verdict: scores, costs, doubts, the decision, the rules beside it. Pure: asks nobody.

The same answers and settings give the same result. Does not know how answers were got (answers.py), or how they are
shown (verdict_page.py).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.answers import Answer
from evaluation.cost import ArmCost, BreakEven, CostConfig, Usage, find_break_evens, price_arms
from evaluation.decision import (
    DOCUMENT_ARMS,
    TUNED_ARMS,
    ArmScores,
    DecisionConfig,
    Outcome,
    Verdict,
    decide,
    sort_arms,
)
from evaluation.doubts import find_doubts
from evaluation.metrics import Scored, Summary, score_all, summarize
from evaluation.questions import Question
from evaluation.rules import Advice, Situation, advise, compare_with_verdict
from evaluation.updates import UpdateFinding
from evaluation.wording import Wording, word_verdict


@dataclass(frozen=True, slots=True)
class Training:
    """What one training took.

    Attributes:
        tokens: Read, all epochs together.
        seconds: Of the whole run.
        examples: Rows, or None where that is not known.
    """

    tokens: float
    seconds: float
    examples: int | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """What stands in the stores.

    Attributes:
        tokens: About how many, in the base model's tokens.
        documents: How many.
        ingest_s: Seconds to ingest all of them; None where that was not measured.
    """

    tokens: float
    documents: int
    ingest_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict is made from.

    Attributes:
        questions: In the order of the file.
        answers: Of all arms.
        alone: Answers to some of the questions that were asked one at a time, for latency; may be empty.
        concurrency: Questions at the same time, for `answers`.
        trainings: By arm.
        corpus: None where no documents were searched.
        updates: Of the knowledge update test; empty where there was none.
        left_out: Arms that were not run, with the reason.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    alone: Sequence[Answer] = ()
    concurrency: int = 1
    trainings: Mapping[str, Training] = field(default_factory=dict)
    corpus: Corpus | None = None
    updates: Sequence[UpdateFinding] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A verdict with everything that it rests on.

    Attributes:
        evidence: As it was given.
        arms: Names, preferred ones first.
        scored: Every answer with its scores, arm by arm, in the order of the questions.
        summaries: Means by arm and kind.
        verdict: The decision.
        wording: The decision in sentences.
        costs: By arm, in the order of `arms`.
        break_evens: Volumes at which costs change places.
        advice: What the written rules say.
        agreement: Whether rules and measurement agree.
        doubts: What looks wrong in the answers themselves.
        cost: Prices and volume.
        decision: What the verdict had to meet.
    """

    evidence: Evidence
    arms: list[str]
    scored: list[Scored]
    summaries: list[Summary]
    verdict: Verdict
    wording: Wording
    costs: list[ArmCost]
    break_evens: list[BreakEven]
    advice: Advice
    agreement: str
    doubts: list[str]
    cost: CostConfig
    decision: DecisionConfig


def reach_verdict(evidence: Evidence, decision: DecisionConfig, cost: CostConfig, situation: Situation) -> Result:
    """Score, price, decide and put into words.

    Args:
        evidence: Every arm has an answer to every question; one that failed counts as wrong.
        decision: What the verdict must meet.
        cost: Prices and volume.
        situation: For the written rules; what the evidence tells itself is filled in.
    """
    scored = _order(score_all(evidence.questions, evidence.answers), evidence.questions)
    usages = measure_usages(evidence, scored)
    costs = price_arms(usages, cost)
    kinds = [question.kind.value for question in evidence.questions]
    arms = make_arms(scored, evidence.alone, {one.arm: one.local.monthly_usd(cost.monthly_answers) for one in costs})
    verdict = decide(arms, kinds, decision)
    names = [arm.name for arm in sort_arms(arms, decision.order)]
    costs.sort(key=lambda one: names.index(one.arm))
    scored.sort(key=lambda one: names.index(one.answer.arm))  # stable: questions keep their order
    break_evens = find_break_evens(costs)
    advice = advise(fill_situation(situation, evidence, cost))
    return Result(
        evidence=evidence,
        arms=names,
        scored=scored,
        summaries=summarize(scored),
        verdict=verdict,
        wording=word_verdict(verdict, costs, cost.monthly_answers, break_evens),
        costs=costs,
        break_evens=break_evens,
        advice=advice,
        agreement=compare_with_verdict(
            advice, verdict.arm, verdict.open, verdict.means, is_decided=verdict.outcome is Outcome.decided
        ),
        doubts=find_doubts(scored),
        cost=cost,
        decision=decision,
    )


def _order(scored: Sequence[Scored], questions: Sequence[Question]) -> list[Scored]:
    places = {question.id: place for place, question in enumerate(questions)}
    return sorted(scored, key=lambda one: places[one.question.id])


def make_arms(scored: Sequence[Scored], alone: Sequence[Answer], monthly_usd: Mapping[str, float]) -> list[ArmScores]:
    """Return each arm's successes in the order of the questions, its latencies and its cost.

    Args:
        scored: Question by question.
        alone: Answers asked one at a time; where an arm has none, the latencies of `scored` stand in.
        monthly_usd: By arm.
    """
    arms = []
    for name in dict.fromkeys(one.answer.arm for one in scored):
        own = [one for one in scored if one.answer.arm == name]
        latencies = _list_latencies([answer for answer in alone if answer.arm == name])
        latencies = latencies or _list_latencies([one.answer for one in own])
        scores = np.array([one.scores.success for one in own])
        arms.append(ArmScores(name, scores, np.array(latencies), monthly_usd.get(name)))
    return arms


def _list_latencies(answers: Sequence[Answer]) -> list[float]:
    return [answer.latency_s for answer in answers if answer.error is None]


def measure_usages(evidence: Evidence, scored: Sequence[Scored]) -> dict[str, Usage]:
    """Return what each arm uses, by its name.

    An answer keeps the machine busy for its latency alone; where none was asked alone, for its latency under load
    divided by the number of questions at the same time. Tokens are means over the answers that came with a count.
    """
    usages = {}
    corpus = evidence.corpus
    for name in dict.fromkeys(one.answer.arm for one in scored):
        own = [one.answer for one in scored if one.answer.arm == name and one.answer.error is None]
        alone = _list_latencies([answer for answer in evidence.alone if answer.arm == name])
        loaded = [answer.latency_s / evidence.concurrency for answer in own]
        training = evidence.trainings.get(name)
        uses_documents = name in DOCUMENT_ARMS or any(answer.searched for answer in own)
        usages[name] = Usage(
            prompt_tokens=_mean([answer.prompt_tokens for answer in own if answer.prompt_tokens is not None]),
            completion_tokens=_mean(
                [answer.completion_tokens for answer in own if answer.completion_tokens is not None]
            ),
            question_tokens=_mean([1.3 * len(answer.question.split()) for answer in own]),
            busy_s=_mean(alone or loaded),
            uses_documents=uses_documents,
            is_tuned=name in TUNED_ARMS,
            training_tokens=training.tokens if training else 0.0,
            training_s=training.seconds if training else 0.0,
            corpus_tokens=corpus.tokens if corpus and uses_documents else 0.0,
            ingest_s=(corpus.ingest_s or 0.0) if corpus and uses_documents else 0.0,
        )
    return usages


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def fill_situation(situation: Situation, evidence: Evidence, cost: CostConfig) -> Situation:
    """Return the situation with what the evidence tells: examples, documents, volume, how often knowledge changes."""
    examples = [one.examples for one in evidence.trainings.values() if one.examples is not None]
    filled = dataclasses.replace(situation)
    if filled.changes_per_month is None:
        filled.changes_per_month = cost.updates_per_month
    if filled.needs_format is None:
        filled.needs_format = any(question.regex or question.schema for question in evidence.questions)
    if filled.examples is None and examples:
        filled.examples = max(examples)
    if filled.documents is None and evidence.corpus is not None:
        filled.documents = evidence.corpus.documents
    if filled.queries_per_month is None:
        filled.queries_per_month = cost.monthly_answers
    return filled
