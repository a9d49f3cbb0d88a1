"""How far a judge can be believed: it is compared with people's labels, and with pairs whose truth is known.

A labelled sample is a file of JSON lines: `question`, `answer` or `reference`, `contexts`, and under the name of each
metric what a person says, 0 or 1. Controls are made from the user's own questions: the right answer beside passages
that hold it (1), and beside passages of another question that do not (0). A judge that always says yes agrees with
half of them. Does not know how a judge is asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError, describe_os_error
from evaluation.judge import RAGAS_METRICS
from evaluation.judgements import Judgement, Sample
from evaluation.metrics import Scored, judge_content
from evaluation.questions import Kind, spread

CONTROL_METRIC = "context_recall"
"""One call of the judge each; the answer is given, so nothing but the judge is tried."""
YES = 0.5
"""From this score on, a judge is taken to have said yes."""
MIN_BELIEVED = 4
"""Fewer known noes (or yeses) than this say nothing about a judge."""
MAX_NOES_MISSED = 0.5
MIN_TOLD_APART = 0.2
"""Least difference between the shares of known yeses and of known noes that a judge says yes to (Youden's J)."""
LABELS, CONTROLS = "label", "control"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample whose truth is known, by metric: 1 or 0."""

    sample: Sample
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a judge agrees with what is known.

    Attributes:
        source: `label` (people's) or `control` (made from the questions).
        metric: The metric.
        n: Judged pairs.
        faults: Pairs without a judgement.
        agreement: Share of the judged pairs where both say the same.
        kappa: Cohen's kappa, -1 to 1: agreement beyond chance; None where one answer only was known or given.
        yes_kept: Share of the known yeses to which the judge says yes; None without one.
        noes_kept: Share of the known noes to which the judge says no; None without one.
        yeses: Known yeses that were judged.
        noes: Known noes that were judged.
    """

    source: str
    metric: str
    n: int
    faults: int
    agreement: float | None
    kappa: float | None
    yes_kept: float | None
    noes_kept: float | None
    yeses: int
    noes: int


def read_labels(path: Path) -> list[Labelled]:
    """Read a labelled sample.

    Raises:
        NotFound: There is no such file.
        InputError: Lines are not what they should be; all are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: wanted UTF-8 text, found other bytes ({error}).", param="judge.labels") from error
    found, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_parse_label(json.loads(line), number))
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: {error}")
    if not found and not faults:
        faults = ["wanted at least one labelled answer, found none"]
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        raise InputError(f"{path}: {len(faults)} faults in the labels:{shown}", param="judge.labels")
    return found


def _parse_label(row: Any, number: int) -> Labelled:
    """Return a row as a labelled sample.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise ValueError('wanted an object with text under "question"')
    labels = {metric: row[metric] for metric in RAGAS_METRICS if metric in row}
    if not labels or any(type(label) is not int or label not in (0, 1) for label in labels.values()):
        raise ValueError(f"wanted 0 or 1 under at least one of {', '.join(RAGAS_METRICS)}")
    contexts = row.get("contexts", [])
    if not isinstance(contexts, list) or not all(isinstance(text, str) and text.strip() for text in contexts):
        raise ValueError('wanted a list of texts under "contexts"')
    texts = {key: row.get(key) for key in ("answer", "reference")}
    if any(text is not None and not (isinstance(text, str) and text.strip()) for text in texts.values()):
        raise ValueError('wanted text under "answer" and "reference", where they are given')
    sample = Sample(LABELS, f"line-{number}", row["question"], texts["answer"], tuple(contexts), texts["reference"])
    if unfit := [metric for metric in labels if not sample.fits(metric)]:
        raise ValueError(f"{unfit[0]}: wanted what it is judged by (answer, contexts or reference), found it missing")
    return Labelled(sample, labels)


def make_controls(scored: Sequence[Scored], count: int) -> list[Labelled]:
    """Make pairs whose truth is known from the user's own questions, spread over them.

    Args:
        scored: Answers with their questions; those that read passages and have a right answer count.
        count: So many pairs of each kind at most.

    Returns:
        Each right answer beside the passages that hold it, then beside those of the next question that do not.
    """
    usable = {
        one.question.id: one
        for one in scored
        if one.answer.hits and one.question.kind is not Kind.unanswerable and one.question.answers and _holds(one, one)
    }
    rows = list(usable.values())
    pairs = []
    for place, one in enumerate(rows):
        others = rows[place + 1 :] + rows[:place]
        foreign = next((other for other in others if not _holds(one, other)), None)
        if foreign is not None:
            pairs.append((one, foreign))
    controls = []
    for one, foreign in spread(pairs, count):
        for contexts, label in ((_list_contexts(one), 1), (_list_contexts(foreign), 0)):
            reference = one.question.answers[0]
            sample = Sample(CONTROLS, f"{one.question.id} {label}", one.question.question, None, contexts, reference)
            controls.append(Labelled(sample, {CONTROL_METRIC: label}))
    return controls


def _holds(asked: Scored, read: Scored) -> bool:
    """Tell whether what was read for one question holds the right answer to another."""
    return bool(judge_content(asked.question, "\n".join(_list_contexts(read))))


def _list_contexts(one: Scored) -> tuple[str, ...]:
    return tuple(hit.text for hit in one.answer.hits)


def measure_agreement(known: Sequence[Labelled], judgements: Sequence[Judgement]) -> list[Agreement]:
    """Compare a judge with what is known, by source and metric.

    Args:
        known: Labelled samples and controls.
        judgements: The judge's, of these samples.
    """
    found = {(one.group, one.id, one.metric): one.value for one in judgements}
    groups: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
    for one in known:
        for metric, label in one.labels.items():
            key = (one.sample.group, one.sample.id, metric)
            if key in found:
                groups.setdefault((one.sample.group, metric), []).append((label, found[key]))
    return [_compare(source, metric, pairs) for (source, metric), pairs in groups.items()]


def _compare(source: str, metric: str, pairs: Sequence[tuple[int, float | None]]) -> Agreement:
    judged = [(label, int(value >= YES)) for label, value in pairs if value is not None]
    yeses = [said for label, said in judged if label == 1]
    noes = [said for label, said in judged if label == 0]
    same = sum(label == said for label, said in judged)
    return Agreement(
        source=source,
        metric=metric,
        n=len(judged),
        faults=len(pairs) - len(judged),
        agreement=same / len(judged) if judged else None,
        kappa=measure_kappa(judged),
        yes_kept=sum(yeses) / len(yeses) if yeses else None,
        noes_kept=1 - sum(noes) / len(noes) if noes else None,
        yeses=len(yeses),
        noes=len(noes),
    )


def measure_kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Return Cohen's kappa of two raters who say 0 or 1; None where chance alone agrees always, or without pairs.

    Source: Cohen, «A coefficient of agreement for nominal scales», 1960.
    """
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(one == other for one, other in pairs) / n
    first, second = (sum(values) / n for values in zip(*pairs, strict=True))
    chance = first * second + (1 - first) * (1 - second)
    return None if math.isclose(chance, 1.0) else (observed - chance) / (1 - chance)


def find_judge_doubts(
    agreements: Sequence[Agreement], judge: str, base: str, judged_bases: Mapping[str, str]
) -> list[str]:
    """Name what speaks against believing a judge, in sentences.

    Args:
        agreements: With everything known.
        judge: The judge's name.
        base: Its base model.
        judged_bases: Base model of each arm, by the arm's name.
    """
    doubts = [
        f"The judge {judge} judges itself: arm {arm} answers with the same base model. Models favour their own "
        "answers; take another judge."
        for arm, other in judged_bases.items()
        if other == base
    ]
    yeses, noes = sum(one.yeses for one in agreements), sum(one.noes for one in agreements)
    missed = sum(round((1 - (one.noes_kept or 0.0)) * one.noes) for one in agreements if one.noes)
    kept = sum(round((one.yes_kept or 0.0) * one.yeses) for one in agreements if one.yeses)
    own = len(doubts)
    faults, pairs = sum(one.faults for one in agreements), sum(one.n + one.faults for one in agreements)
    if noes >= MIN_BELIEVED and missed / noes > MAX_NOES_MISSED:
        doubts.append(
            f"The judge {judge} says yes to {missed} of {noes} answers that are known to be wrong or unsupported"
            f"{' and to everything else' if missed == noes and kept == yeses else ''}: its scores cannot be believed."
        )
    if yeses >= MIN_BELIEVED and kept / yeses < 1 - MAX_NOES_MISSED:
        doubts.append(
            f"The judge {judge} says no to {yeses - kept} of {yeses} answers that are known to be right: its scores "
            "cannot be believed."
        )
    is_named = len(doubts) > own
    if not is_named and min(yeses, noes) >= MIN_BELIEVED and kept / yeses - missed / noes < MIN_TOLD_APART:
        doubts.append(
            f"The judge {judge} says yes to {kept} of {yeses} answers that are known to be right and to {missed} of "
            f"{noes} that are not: it hardly tells them apart, and its scores cannot be believed."
        )
    if pairs and faults / pairs > MAX_NOES_MISSED:
        doubts.append(f"The judge {judge} gave no usable judgement of {faults} of {pairs} known pairs.")
    if pairs == 0 or (yeses < MIN_BELIEVED and noes < MIN_BELIEVED and faults == 0):
        doubts.append(
            f"The judge {judge} was compared with {yeses + noes} known pairs only: nothing is known about how well it "
            "judges. Give judge.labels, or questions with right answers."
        )
    return doubts
