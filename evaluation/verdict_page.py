"""A verdict as a page: what it says, how sure it is, what it costs, and every answer that it rests on.

Each mean is a link to the answers of its arm, each answer's row can be linked to. Does not decide or compute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.answers import Answer
from evaluation.metrics import MEANINGS, METRICS, Scored, measure_percentile
from evaluation.questions import Kind, Question
from evaluation.report import GREY, PALETTE, Cell, Link, Section, draw_bars, make_anchor
from evaluation.verdict import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_METRICS = (
    "success", "correct", "exact_match", "token_f1", "format_ok", "abstained", "citation_precision", "citation_recall",
    "retrieval_recall", "ndcg_at_10", "failed",
)  # fmt: skip
FORMAT = "loam-verdict-1"


def make_sections(result: Result, settings: Mapping[str, Any]) -> list[Section]:
    """Return the page's parts.

    Args:
        result: The verdict.
        settings: What the run was told, as shown in the last table; no path of the machine in it.
    """
    sections = [_say_verdict(result)]
    if result.doubts:
        text = "Mend these before believing any figure below."
        sections.append(Section("Doubts", text, ("what looks wrong",), [(doubt,) for doubt in result.doubts]))
    sections += [_show_quality(result), _show_kinds(result), _show_pairs(result), _show_metrics(result)]
    sections += [_show_speed(result), _show_costs(result), _show_break_evens(result)]
    if result.evidence.updates:
        sections.append(_show_updates(result))
    sections.append(_show_rules(result))
    sections += [_list_answers(result, arm) for arm in result.arms]
    rows = [(key, "–" if value in (None, {}) else str(value)) for key, value in settings.items()]
    sections.append(Section("How this was made", "", ("setting", "value"), rows))
    return sections


def make_values(result: Result, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what report.json holds; numbers are rounded to six digits."""
    volume = result.cost.monthly_answers
    quality = {name: interval.mean for name, interval in result.verdict.means.items()}
    values = {
        "format": FORMAT,
        "verdict": asdict(result.verdict),
        "wording": asdict(result.wording),
        "doubts": result.doubts,
        "metrics": [asdict(one) for one in result.summaries],
        "latency": {arm: _measure_latency(result, arm) for arm in result.arms},
        "cost": asdict(result.cost),
        "costs": [
            {
                "arm": one.arm,
                "usage": asdict(one.usage),
                "local_monthly_usd": one.local.monthly_usd(volume),
                "hosted_monthly_usd": [one.hosted_low.monthly_usd(volume), one.hosted_high.monthly_usd(volume)],
                "local_usd_per_correct": one.local.usd_per_correct(volume, quality[one.arm]),
                "hosted_usd_per_correct": one.hosted_low.usd_per_correct(volume, quality[one.arm]),
            }
            for one in result.costs
        ],
        "break_evens": [asdict(one) for one in result.break_evens],
        "updates": [asdict(one) for one in result.evidence.updates],
        "rules": asdict(result.advice) | {"agreement": result.agreement},
        "left_out": dict(result.evidence.left_out),
        "settings": dict(settings),
    }
    plain = _to_plain(values)
    if not isinstance(plain, dict):
        raise TypeError("values: wanted a mapping")
    return plain


def make_table(scored: Sequence[Scored]) -> tuple[list[str], list[list[Any]]]:
    """Return scores.csv: one line an answer, every metric of it."""
    columns = ["arm", "question_id", "kind", *METRICS]
    rows = [
        [one.answer.arm, one.question.id, one.question.kind.value, *(getattr(one.scores, name) for name in METRICS)]
        for one in scored
    ]
    return columns, rows


def _to_plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return round(float(value), 6) if isinstance(value, float | np.floating) else value


def _anchor(arm: str, question: Question, result: Result) -> str:
    places = {one.id: place for place, one in enumerate(result.evidence.questions)}
    return make_anchor(arm, str(places[question.id]))


def _link_first(result: Result, arm: str, kind: str | None = None) -> str:
    """Return the anchor of an arm's first answer, of one kind where it is given."""
    for question in result.evidence.questions:
        if kind is None or question.kind.value == kind:
            return _anchor(arm, question, result)
    return ""


def _say_verdict(result: Result) -> Section:
    wording, verdict = result.wording, result.verdict
    text = "\n\n".join(part for part in (wording.headline, wording.advice) if part)
    text += f"\n\nAll intervals of differences hold together with probability {verdict.level:.0%}; the margin that "
    text += f"matters is {verdict.margin:.2f}."
    rows = [("because", reason) for reason in wording.reasons]
    rows += [("what would change it", change) for change in wording.would_change]
    rows += [("not measured", f"{arm}: {reason}") for arm, reason in result.evidence.left_out.items()]
    return Section("Verdict", text, ("", ""), rows)


def _show_quality(result: Result) -> Section:
    means = result.verdict.means
    rows: list[tuple[Cell, ...]] = [
        (arm, Link(means[arm].mean, _link_first(result, arm)), means[arm].low, means[arm].high, means[arm].n,
         _state(result, arm))
        for arm in result.arms
    ]  # fmt: skip
    figure = draw_bars(
        result.arms,
        [means[arm].mean for arm in result.arms],
        [means[arm].low for arm in result.arms],
        [means[arm].high for arm in result.arms],
        "right answers",
    )
    text = "A right answer meets every demand of its question: content, form, and declining where there is no answer."
    columns = ("arm", "right", "low", "high", "questions", "")
    return Section("Quality", text, columns, rows, figure=figure)


def _state(result: Result, arm: str) -> str:
    state, reason = result.verdict.name_state(arm), result.verdict.ruled_out.get(arm)
    return state if reason is None else f"{state}: {reason}"


def _show_kinds(result: Result) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for finding in result.verdict.kinds:
        most = finding.means[finding.leader].mean
        is_tie = sum(interval.mean == most for interval in finding.means.values()) > 1
        for arm in result.arms:
            interval = finding.means[arm]
            link = Link(interval.mean, _link_first(result, arm, finding.kind))
            note = ("leads, with others" if is_tie else "leads") if interval.mean == most > 0 else ""
            rows.append((finding.kind, arm, link, interval.low, interval.high, finding.n, note))
    text = "An arm that leads need not be better: look whether its interval lies above the others'."
    return Section("By kind of question", text, ("kind", "arm", "right", "low", "high", "questions", ""), rows)


def _show_pairs(result: Result) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for pair in result.verdict.pairs:
        found = pair.comparison
        link = Link(found.difference, _link_first(result, pair.second))
        rows.append((pair.second, pair.first, link, found.low, found.high, found.p_value))
    text = (
        "Paired by question. Intervals hold for all pairs together (BCa bootstrap, Bonferroni); p-values are of the "
        "sign-flip test, corrected by Holm."
    )
    return Section("Each arm against each", text, ("arm", "against", "difference", "low", "high", "p"), rows)


def _show_metrics(result: Result) -> Section:
    found = {(one.arm, one.metric): one for one in result.summaries if one.kind == "all"}
    used = [name for name in SHOWN_METRICS if any(found[arm, name].n for arm in result.arms)]
    rows: list[tuple[Cell, ...]] = []
    for name in used:
        cells: list[Cell] = [name, MEANINGS[name]]
        for arm in result.arms:
            mean = found[arm, name].mean
            cells.append(None if mean is None else Link(mean, _link_first(result, arm)))
        rows.append(tuple(cells))
    text = (
        "Means over the answers to which a metric applies, every question alike whatever its kind's weight; how many "
        "those are stands in report.json."
    )
    return Section("Metrics", text, ("metric", "what it is", *result.arms), rows)


def _measure_latency(result: Result, arm: str) -> dict[str, Any]:
    """Return an arm's times in seconds and its tokens."""
    alone = [answer for answer in result.evidence.alone if answer.arm == arm and answer.error is None]
    loaded = [one.answer for one in result.scored if one.answer.arm == arm and one.answer.error is None]
    timed = alone or loaded
    usage = next(one.usage for one in result.costs if one.arm == arm)
    first = [answer.ttft_s for answer in timed if answer.ttft_s is not None]
    return {
        "n": len(timed),
        "asked": "alone" if alone else f"{result.evidence.concurrency} at a time",
        "median_s": measure_percentile([answer.latency_s for answer in timed], 0.5),
        "p95_s": measure_percentile([answer.latency_s for answer in timed], 0.95),
        "median_first_s": measure_percentile(first, 0.5),
        "busy_s": usage.busy_s,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _show_speed(result: Result) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for arm in result.arms:
        found = _measure_latency(result, arm)
        link = Link(found["median_s"], _link_first(result, arm)) if found["median_s"] is not None else None
        rows.append((arm, link, *(found[key] for key in ("p95_s", "median_first_s", "busy_s", "prompt_tokens",
                                                          "completion_tokens", "n", "asked"))))  # fmt: skip
    columns = ("arm", "median s", "95% within s", "first text s", "machine busy s", "prompt tokens", "answer tokens",
               "answers", "asked")  # fmt: skip
    text = (
        "Seconds on the client's clock, from the request to the end. Asked alone: one question at a time. Machine busy "
        "s: how long one answer takes the machine (its GPU, where it has one) for itself; of answers asked alone that "
        "is their mean time."
    )
    return Section("Time and tokens", text, columns, rows)


def _show_costs(result: Result) -> Section:
    volume = result.cost.monthly_answers
    rows: list[tuple[Cell, ...]] = []
    for one in result.costs:
        quality = result.verdict.means[one.arm].mean
        for place, cost in (("local", one.local), ("hosted, low", one.hosted_low), ("hosted, high", one.hosted_high)):
            correct = cost.usd_per_correct(volume, quality)
            per_correct = None if correct is None else Link(1000 * correct, _link_first(result, one.arm))
            rows.append((one.arm, place, cost.monthly_usd(volume), cost.usd_per_thousand(volume), per_correct))
    updates = f"{result.cost.updates_per_month:g} update{'' if result.cost.updates_per_month == 1 else 's'}"
    months = f"{result.cost.setup_months} month{'' if result.cost.setup_months == 1 else 's'}"
    text = (
        f"In USD, at {volume:,} answers and {updates} a month, the first training and ingestion spread over {months}, "
        f"with the prices of {result.cost.as_of}, from conf/cost/. Local: the machine is paid for whether it works or "
        "not. Hosted: the model that answers would be another one; only tokens are taken from here. low and high are "
        "the prices of the vector database."
    )
    text += "".join(f" {sentence}" for sentence in list_uncounted(result))
    columns = ("arm", "where", "a month", "a thousand answers", "a thousand right answers")
    return Section("Cost", text, columns, rows, figure=draw_costs(result))


def list_uncounted(result: Result) -> list[str]:
    """Return what the costs leave out because it was not measured, in sentences."""
    usages, corpus = [one.usage for one in result.costs], result.evidence.corpus
    untold = [one.arm for one in result.costs if one.usage.is_tuned and not one.usage.training_s]
    found = []
    if any(usage.uses_documents for usage in usages):
        if corpus is None:
            found.append(
                "How many documents there are is not known here, so that embedding and ingesting them is not counted."
            )
        elif corpus.ingest_s is None:
            found.append(
                "How long ingesting takes was not measured, so that it costs nothing here on one's own machine."
            )
    if untold:
        found.append(f"What training took is not known here of {', '.join(untold)}, so that it is not counted.")
    return found


def draw_costs(result: Result) -> "Figure":
    """Draw monthly cost by volume: lines for one's own machine, dashes for hosted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    volumes = np.geomspace(100, 10_000_000, 201)
    for place, one in enumerate(result.costs):
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(volumes, [one.local.monthly_usd(volume) for volume in volumes], color=colour, label=one.arm)
        hosted = [max(one.hosted_low.monthly_usd(volume), 1e-3) for volume in volumes]
        axes.plot(volumes, hosted, color=colour, linestyle="--", linewidth=1)
    axes.axvline(result.cost.monthly_answers, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="answers a month", ylabel="USD a month", ylim=(0.1, None))
    axes.grid(alpha=0.25)
    axes.legend(title="line: local, dashes: hosted", fontsize=8, title_fontsize=8)
    return figure


def _show_break_evens(result: Result) -> Section:
    rows: list[tuple[Cell, ...]] = [(one.cheaper_below, one.cheaper_above, one.volume) for one in result.break_evens]
    text = (
        "The first number of answers a month from which the order turns; – where the first is cheaper at every volume."
    )
    return Section(
        "Break-even", text, ("cheaper below", "cheaper from there on", "answers a month"), rows, is_folded=True
    )


def _show_updates(result: Result) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (one.arm, one.n, one.right_before, one.right_after, one.still_old, one.update, one.update_s)
        for one in result.evidence.updates
    ]
    columns = (
        "arm",
        "facts",
        "old fact right before",
        "new fact right after",
        "still the old fact",
        "update",
        "update s",
    )
    text = "The facts were changed in a copy of the documents; the same questions were asked before and after."
    return Section("Knowledge update", text, columns, rows)


def _show_rules(result: Result) -> Section:
    rows = [(one.rule, one.side.value, one.reason) for one in result.advice.findings]
    text = f"{result.advice.summary}\n\n{result.agreement}"
    return Section("The written rules, as a second opinion", text, ("rule", "speaks for", "because"), rows)


def _list_answers(result: Result, arm: str) -> Section:
    own = [one for one in result.scored if one.answer.arm == arm]
    rows: list[tuple[Cell, ...]] = []
    anchors = []
    for one in own:
        wanted = one.question.accept or one.question.answers
        if one.question.kind is Kind.unanswerable:
            wanted = ("(has no answer)",)
        said = one.answer.text if one.answer.error is None else f"({one.answer.error})"
        rows.append((one.question.kind.value, one.question.question, " | ".join(wanted), said,
                     _list_sources(one.answer), one.scores.success, one.answer.latency_s))  # fmt: skip
        anchors.append(_anchor(arm, one.question, result))
    columns = ("kind", "question", "wanted", "answer", "sources read", "right", "s")
    return Section(f"Answers: {arm}", "", columns, rows, anchors=anchors, is_folded=True)


def _list_sources(answer: Answer) -> str:
    """Return the documents that were read, best first, cited ones with their mark."""
    cited = set(answer.citations)
    names = [f"[{hit.n}] {hit.file}" if hit.n in cited else hit.file for hit in answer.hits]
    return ", ".join(dict.fromkeys(names))
