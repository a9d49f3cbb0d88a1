"""The card of one evaluated model: what its answers are worth, how sure that is, and which limits it misses.

Computes and lays out; asks nobody. The same answers, judgements and seed give the same card. Does not know how a
report is drawn (report.py does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from core.errors import ConfigError
from evaluation.answers import Answer
from evaluation.calibration import Agreement
from evaluation.judge import RAGAS_METRICS
from evaluation.judgements import JudgedMean, Judgement
from evaluation.metrics import ALL_KINDS, MEANINGS, METRICS, Scored, Summary, measure_percentile, summarize
from evaluation.report import Cell, Section, draw_bars
from evaluation.resampling import Comparison, Interval, bootstrap_mean, compare_paired
from evaluation.searches import RECALL_DEPTHS, SearchQuality

FORMAT = "loam-evaluation-1"
QUALITY = METRICS[: METRICS.index("ttft_s")]
"""Metrics of Scores that tell how good an answer is, 0 to 1."""
MEASURED = ("ttft_s", "latency_s", "prompt_tokens", "completion_tokens")
PERCENTILES = {"p50": 0.5, "p95": 0.95}
SPREAD = tuple(f"{metric}_{name}" for metric in MEASURED for name in PERCENTILES)
SEARCHED = (*(f"store_recall_at_{depth}" for depth in RECALL_DEPTHS), "store_ndcg_at_10", "store_mrr_at_10")
JUDGED_MEANINGS = {
    "faithfulness": "share of the answer's claims that the passages support",
    "answer_relevancy": "how near the question is to questions that the answer would answer",
    "context_precision": "how high the useful passages stand",
    "context_recall": "share of the right answer that the passages support",
}
"""What a reader of the report is told of each of RAGAS's metrics."""
LIMITED = (*METRICS, *RAGAS_METRICS, *SPREAD, *SEARCHED, "judge_faults")
"""What a limit may be set for."""


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """One metric of two runs over the same questions; the difference is this run less the other."""

    metric: str
    other_mean: float
    mean: float
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Card:
    """Everything that is told of one evaluated model.

    Attributes:
        name: Of the report.
        settings: What it was made from, for people.
        scored: Every answer with its scores.
        summaries: Means by kind of question.
        success: The share of answers that meet every demand, with its interval.
        figures: One value by each name of LIMITED; None where it was not measured.
        judged: Means of RAGAS's metrics.
        judgements: What they come from.
        agreements: How the judge agrees with what is known.
        judge: Its server, model and cost; empty without one.
        searched: How good the store is by itself; None where it was not searched.
        doubts: Sentences on why the figures may not mean what they seem to.
        compared_with: Name of the other run; None without one.
        compared: Metric by metric.
        misses: Limits that are not kept, in sentences.
    """

    name: str
    settings: Mapping[str, Any]
    scored: Sequence[Scored]
    summaries: Sequence[Summary]
    success: Interval
    figures: Mapping[str, float | None]
    judged: Sequence[JudgedMean] = ()
    judgements: Sequence[Judgement] = ()
    agreements: Sequence[Agreement] = ()
    judge: Mapping[str, Any] = field(default_factory=dict)
    searched: SearchQuality | None = None
    doubts: Sequence[str] = ()
    compared_with: str | None = None
    compared: Sequence[ComparedMetric] = ()
    misses: Sequence[str] = ()


def measure_figures(
    scored: Sequence[Scored], judged: Sequence[JudgedMean], searched: SearchQuality | None = None
) -> dict[str, float | None]:
    """Return one value by each name that a limit may be set for, over all answers of one arm."""
    figures: dict[str, float | None] = dict.fromkeys(LIMITED)
    for summary in summarize(scored):
        if summary.kind == ALL_KINDS:
            figures[summary.metric] = summary.mean
    for metric in MEASURED:
        values = [value for one in scored if (value := getattr(one.scores, metric)) is not None]
        for name, share in PERCENTILES.items():
            figures[f"{metric}_{name}"] = measure_percentile(values, share)
    for mean in judged:
        figures[mean.metric] = mean.mean
    if searched is not None:
        figures |= {f"store_recall_at_{depth}": value for depth, value in searched.recall.items()}
        figures |= {"store_ndcg_at_10": searched.ndcg_at_10, "store_mrr_at_10": searched.mrr_at_10}
    if judged:
        faults = sum(mean.faults for mean in judged)
        figures["judge_faults"] = faults / sum(mean.n + mean.faults for mean in judged)
    return figures


def check_limits(at_least: Mapping[str, float], at_most: Mapping[str, float]) -> None:
    """Refuse limits of what is not measured.

    Raises:
        ConfigError: With every wrong name.
    """
    faults = [
        f"{key}.{name}: no such metric. Wanted one of {', '.join(LIMITED)}"
        for key, limits in (("at_least", at_least), ("at_most", at_most))
        for name in limits
        if name not in LIMITED
    ]
    if faults:
        raise ConfigError("; ".join(faults))


def find_misses(
    figures: Mapping[str, float | None], at_least: Mapping[str, float], at_most: Mapping[str, float]
) -> list[str]:
    """Return the limits that are not kept, in sentences; what was not measured keeps none."""
    misses = []
    for limits, word in ((at_least, "at least"), (at_most, "at most")):
        for name, limit in limits.items():
            value = figures.get(name)
            if value is None:
                misses.append(f"{name}: wanted {word} {limit:g}, but it was not measured")
            elif (value < limit) if limits is at_least else (value > limit):
                misses.append(f"{name}: wanted {word} {limit:g}, found {value:.4g}")
    return misses


def compare_runs(scored: Sequence[Scored], other: Sequence[Scored], *, seed: int, level: float) -> list[ComparedMetric]:
    """Compare two runs over the questions that both answered, by paired bootstrap.

    Args:
        scored: This run, one arm.
        other: The other run, one arm, scored against the same questions.
        seed: Of the resampling.
        level: Of the confidence intervals.

    Returns:
        Each metric that at least two questions have a value of in both.
    """
    earlier = {one.question.id: one.scores for one in other}
    pairs = [(earlier[one.question.id], one.scores) for one in scored if one.question.id in earlier]
    compared = []
    for metric in (*QUALITY, *MEASURED):
        values = [(getattr(then, metric), getattr(now, metric)) for then, now in pairs]
        both = np.array([pair for pair in values if None not in pair], dtype=np.float64)  # (n, 2)
        if len(both) < 2:
            continue
        scale = 1.0 if metric in QUALITY else float(both.max()) or 1.0  # seconds and tokens: up to the largest
        found = compare_paired(both[:, 0] / scale, both[:, 1] / scale, seed=seed, level=level)
        difference, low, high = found.difference * scale, found.low * scale, found.high * scale
        comparison = replace(found, difference=difference, low=low, high=high)
        compared.append(ComparedMetric(metric, float(both[:, 0].mean()), float(both[:, 1].mean()), comparison))
    return compared


def measure_success(scored: Sequence[Scored], *, seed: int, level: float) -> Interval:
    """Return the share of answers that meet every demand, with its interval."""
    return bootstrap_mean(np.array([one.scores.success for one in scored]), seed=seed, level=level)


def to_values(card: Card) -> dict[str, Any]:
    """Return what report.json holds."""
    return {
        "format": FORMAT,
        "name": card.name,
        "settings": dict(card.settings),
        "answers": len(card.scored),
        "errors": sum(one.answer.error is not None for one in card.scored),
        "success": asdict(card.success),
        "figures": dict(card.figures),
        "summaries": [asdict(summary) for summary in card.summaries],
        "judge": dict(card.judge),
        "judged": [asdict(mean) for mean in card.judged],
        "searched": None if card.searched is None else asdict(card.searched),
        "agreements": [asdict(agreement) for agreement in card.agreements],
        "doubts": list(card.doubts),
        "compared_with": card.compared_with,
        "compared": [asdict(one) for one in card.compared],
        "misses": list(card.misses),
    }


def to_table(card: Card) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Return what scores.csv holds: a line for each answer, with every metric and judgement of it."""
    judged = {(one.id, one.metric): one.value for one in card.judgements}
    metrics = [metric for metric in RAGAS_METRICS if any(one.metric == metric for one in card.judgements)]
    columns = ("question_id", "kind", "arm", *METRICS, *metrics, "error")
    rows: list[tuple[Cell, ...]] = []
    for one in card.scored:
        scores = [getattr(one.scores, metric) for metric in METRICS]
        judgements = [judged.get((one.question.id, metric)) for metric in metrics]
        rows.append((one.question.id, one.question.label, one.answer.arm, *scores, *judgements, one.answer.error))
    return columns, rows


def lay_out(card: Card) -> list[Section]:
    """Return the report's sections, doubts first."""
    sections = [_lay_out_doubts(card), _lay_out_result(card), _lay_out_kinds(card), _lay_out_speed(card)]
    if card.searched is not None:
        sections.append(_lay_out_searches(card, card.searched))
    if card.judge:
        sections += _lay_out_judge(card)
    if card.compared_with is not None:
        sections.append(_lay_out_comparison(card))
    sections += [_lay_out_settings(card), _lay_out_answers(card)]
    return [section for section in sections if section is not None]


def _lay_out_doubts(card: Card) -> Section | None:
    if not card.doubts and not card.misses:
        return None
    rows = [("doubt", sentence) for sentence in card.doubts] + [("limit not kept", miss) for miss in card.misses]
    return Section("Read this first", "", ("", "what"), tuple(rows))


def _lay_out_result(card: Card) -> Section:
    success = card.success
    text = (
        f"{success.mean:.1%} of {success.n} questions were answered as they demand "
        f"({success.low:.1%} to {success.high:.1%})."
    )
    rows = tuple(
        (summary.metric, MEANINGS[summary.metric], summary.mean, summary.n, summary.missing)
        for summary in card.summaries
        if summary.kind == ALL_KINDS and summary.metric in (*QUALITY, "failed")
    )
    return Section("Result", text, ("metric", "what it is", "mean", "answers with a value", "without"), rows)


def _lay_out_kinds(card: Card) -> Section:
    shown = ("success", "correct", "token_f1", "retrieval_recall", "citation_precision", "abstained", "format_ok")
    found = {(summary.kind, summary.metric): summary for summary in card.summaries}
    kinds = list(dict.fromkeys(summary.kind for summary in card.summaries if summary.kind != ALL_KINDS))
    rows = tuple((kind, found[kind, "success"].n, *(found[kind, metric].mean for metric in shown)) for kind in kinds)
    intervals = [
        bootstrap_mean(
            np.array([one.scores.success for one in card.scored if one.question.kind.value == kind]),
            seed=0,
            level=card.success.level,
        )
        for kind in kinds
    ]
    figure = draw_bars(
        kinds,
        [interval.mean for interval in intervals],
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
        "answered as demanded",
    )
    return Section("By kind of question", "", ("kind", "n", *shown), rows, figure=figure)


def _lay_out_speed(card: Card) -> Section:
    rows = tuple(
        (metric, card.figures[metric], *(card.figures[f"{metric}_{name}"] for name in PERCENTILES))
        for metric in MEASURED
    )
    text = "On the client's clock, from the request to the first text and to the end. Failed answers have no latency."
    return Section("Speed and tokens", text, ("", "mean", *PERCENTILES), rows)


def _lay_out_searches(card: Card, searched: SearchQuality) -> Section:
    text = (
        f"The store {searched.store}, searched with every question by itself. {searched.n} questions have gold "
        f"that can be compared, {searched.without} have none."
    )
    rows = [(name, card.figures[name]) for name in SEARCHED]
    rows += [("seconds, p50", searched.latency_p50_s), ("seconds, p95", searched.latency_p95_s)]
    return Section("Retrieval by itself", text, ("metric", "mean"), tuple(rows))


def _lay_out_judge(card: Card) -> list[Section]:
    usage = card.judge.get("usage", {})
    text = (
        f"Judge: {card.judge.get('model')}. {usage.get('calls', 0)} requests, {usage.get('repeated', 0)} of them "
        f"repeated, {usage.get('faults', 0)} without a usable answer. A fault is RAGAS's NaN: counted, and in no mean."
    )
    means = Section(
        "What the judge says (RAGAS)",
        text,
        ("metric", "what it is", "mean", "n", "faults"),
        tuple((mean.metric, JUDGED_MEANINGS[mean.metric], mean.mean, mean.n, mean.faults) for mean in card.judged),
    )
    believed = Section(
        "How far the judge can be believed",
        "Label: against people. Control: right answers beside passages that hold them (a known yes), and beside "
        "passages of another question (a known no). A kappa near 0 is what chance would give.",
        (
            "known from",
            "metric",
            "pairs",
            "faults",
            "agreement",
            "kappa",
            "known yeses",
            "it says yes",
            "known noes",
            "it says no",
        ),
        tuple(
            (
                one.source,
                one.metric,
                one.n,
                one.faults,
                one.agreement,
                one.kappa,
                one.yeses,
                one.yes_kept,
                one.noes,
                one.noes_kept,
            )
            for one in card.agreements
        ),
    )
    return [means, believed]


def _lay_out_comparison(card: Card) -> Section:
    rows = tuple(
        (
            one.metric,
            one.other_mean,
            one.mean,
            one.comparison.difference,
            one.comparison.low,
            one.comparison.high,
            one.comparison.n,
        )
        for one in card.compared
    )
    columns = ("metric", "other", "this", "difference", "low", "high", "questions")
    return Section(f"Compared with {card.compared_with}", "Paired bootstrap over the questions of both.", columns, rows)


def _lay_out_settings(card: Card) -> Section:
    rows = tuple((key, str(value)) for key, value in card.settings.items())
    return Section("Made from", "", ("setting", "value"), rows, is_folded=True)


def _lay_out_answers(card: Card) -> Section:
    rows = tuple(
        (one.question.id, one.question.question, _shorten(one.answer), one.scores.success, one.scores.latency_s)
        for one in card.scored
    )
    anchors = tuple(f"{one.answer.arm}/{one.question.id}" for one in card.scored)
    columns = ("id", "question", "answer", "success", "latency_s")
    return Section("Every answer", "In full in answers.jsonl.", columns, rows, anchors=anchors, is_folded=True)


def _shorten(answer: Answer, limit: int = 600) -> str:
    text = f"error: {answer.error}" if answer.error else answer.text
    return text if len(text) <= limit else f"{text[:limit]} …"


def is_worse(compared: Sequence[ComparedMetric]) -> bool:
    """Tell whether success fell, and the whole interval of the difference lies below 0."""
    return any(one.metric == "success" and one.comparison.high < 0 for one in compared)
