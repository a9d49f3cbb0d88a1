"""Judgements: what a judge is given, what it said of each sample by each metric, and the means.

A judgement that failed has a reason and no value; RAGAS calls that NaN. It is counted beside the mean, never taken
for 0. Does not know how a judge is asked (ragas_scores.py does).
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ContractError
from core.lines import read_whole_lines
from evaluation.metrics import Scored, remove_marks
from evaluation.questions import Kind


@dataclass(frozen=True, slots=True)
class Sample:
    """What is judged.

    Attributes:
        group: Where it came from: an arm, `label` or `control`.
        id: Unique in its group; of an answer the question's.
        question: What was asked.
        response: The answer without marks; None where there is none to judge.
        contexts: Texts of the passages that the model read, best first; empty where it read none.
        reference: The right answer; None where there is none.
        has_declined: Whether the answer declines: it then makes no claim that could be unfaithful.
        is_answerable: Whether the question has an answer; to decline is else right, which relevancy does not know.
    """

    group: str
    id: str
    question: str
    response: str | None
    contexts: tuple[str, ...] = ()
    reference: str | None = None
    has_declined: bool = False
    is_answerable: bool = True

    def fits(self, metric: str) -> bool:
        """Tell whether one of RAGAS's metrics applies."""
        has_contexts = bool(self.contexts)
        match metric:
            case "faithfulness":
                return has_contexts and bool(self.response) and not self.has_declined
            case "answer_relevancy":
                return bool(self.response) and self.is_answerable
            case _:
                return has_contexts and self.reference is not None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One metric of one sample.

    Attributes:
        group: Of the sample.
        id: Of the sample.
        metric: Name of the metric.
        value: 0 to 1 (relevancy: a cosine, -1 to 1); None where there is none.
        fault: Why there is none.
        fingerprint: SHA-256 over sample, metric, judge and embedder: the same one is not asked for again.
    """

    group: str
    id: str
    metric: str
    value: float | None
    fault: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class JudgedMean:
    """The mean of one of RAGAS's metrics.

    Attributes:
        arm: Name of the arm.
        metric: Its name.
        mean: Over the judgements that have a value; None without one.
        n: These.
        faults: Judgements without a value (RAGAS's NaN).
    """

    arm: str
    metric: str
    mean: float | None
    n: int
    faults: int


def make_samples(scored: Iterable[Scored]) -> list[Sample]:
    """Return saved answers as samples; answers that failed are left out."""
    samples = []
    for one in scored:
        if one.answer.error is not None:
            continue
        question = one.question
        is_answerable = question.kind is not Kind.unanswerable
        reference = next(iter((*question.answers, *question.accept)), None) if is_answerable else None
        samples.append(
            Sample(
                group=one.answer.arm,
                id=question.id,
                question=question.question,
                response=remove_marks(one.answer.text) or None,
                contexts=tuple(hit.text for hit in one.answer.hits),
                reference=reference,
                has_declined=bool(one.scores.abstained),
                is_answerable=is_answerable,
            )
        )
    return samples


def read_judgements(path: Path) -> list[Judgement]:
    """Return the judgements of a file; a missing file has none, and a half-written last line is left out.

    Raises:
        ContractError: It is no file of judgements.
    """
    judgements = []
    for number, line in enumerate(read_whole_lines(path), start=1):
        try:
            judgements.append(Judgement(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ContractError(
                f"{path}, line {number}: wanted a judgement, found something else ({error}). Remove the file."
            ) from error
    return judgements


def summarize_judgements(judgements: Sequence[Judgement]) -> list[JudgedMean]:
    """Return the means by arm and metric, in the order of their first judgement."""
    groups: dict[tuple[str, str], list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault((judgement.group, judgement.metric), []).append(judgement)
    means = []
    for (arm, metric), group in groups.items():
        values = [one.value for one in group if one.value is not None]
        mean = math.fsum(values) / len(values) if values else None
        means.append(JudgedMean(arm, metric, mean, len(values), len(group) - len(values)))
    return means
