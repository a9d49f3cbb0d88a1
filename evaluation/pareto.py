"""Trials of a study with two aims, right answers and time: which of them no other beats, and their report.

Pure: asks nobody. The same trials give the same page. Does not know how settings were chosen or tried (scripts/sweep.py
does).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evaluation.report import BLUE, GREY, ORANGE, Cell, Section
from evaluation.resampling import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "loam-sweep-1"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What one trial reached.

    Attributes:
        number: Of the trial.
        settings: What was tried; every trial has the same keys.
        quality: Share of right answers, with its interval for this trial alone.
        seconds: Median of an answer.
    """

    number: int
    settings: dict[str, Any]
    quality: Interval
    seconds: float


def find_best(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the results that no other beats in both quality and time, the quickest first."""
    best = [
        one
        for one in results
        if not any(
            other.quality.mean >= one.quality.mean
            and other.seconds <= one.seconds
            and (other.quality.mean > one.quality.mean or other.seconds < one.seconds)
            for other in results
        )
    ]
    return sorted(best, key=lambda one: (one.seconds, one.number))


def lay_out(results: Sequence[TrialResult], shared: Mapping[str, Any]) -> list[Section]:
    """Return the page's parts: what nothing beats, every trial, what all shared.

    Args:
        results: At least one.
        shared: What every trial had in common; `n` questions and `concurrency` are named in the text.
    """
    best = find_best(results)
    numbers = {one.number for one in best}
    columns = ("trial", *results[0].settings, "right", "low", "high", "median s")

    def row(one: TrialResult) -> tuple[Cell, ...]:
        return (one.number, *one.settings.values(), one.quality.mean, one.quality.low, one.quality.high, one.seconds)

    winner = max(best, key=lambda one: one.quality.mean)
    tried = ", ".join(f"{key} {value}" for key, value in winner.settings.items())
    reached = f"{winner.quality.mean:.0%} ({winner.quality.low:.0%} to {winner.quality.high:.0%})"
    text = (
        f"Most right answers: {reached}, by trial {winner.number} with {tried}.\n\n"
        f"Of {len(results)} trials on the same {shared['n']} questions these are beaten by no other in both right "
        "answers and time. The best of many owes part of its lead to chance: where intervals overlap, the order may be "
        "another one. Judge the winner on other questions.\n\n"
        f"Seconds are those of an answer with {shared['concurrency']} questions at a time. Intervals hold at 95%, each "
        "for its trial alone."
    )
    every = [(*row(one), "not beaten" if one.number in numbers else "") for one in results]
    facts = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in shared.items()]
    return [
        Section("Not beaten in both", text, columns, [row(one) for one in best], figure=draw(results)),
        Section("Every trial", "", (*columns, ""), every),
        Section("What all trials shared", "", ("setting", "value"), facts, is_folded=True),
    ]


def draw(results: Sequence[TrialResult]) -> "Figure":
    """Draw quality against time: every trial with its interval, and steps through those that nothing beats."""
    from matplotlib.figure import Figure

    best = find_best(results)
    numbers = {one.number for one in best}
    beaten = [one for one in results if one.number not in numbers]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for group, colour, label in ((beaten, GREY, "beaten"), (best, BLUE, "not beaten in both")):
        if group:
            means = [one.quality.mean for one in group]
            below = [one.quality.mean - one.quality.low for one in group]
            above = [one.quality.high - one.quality.mean for one in group]
            axes.errorbar([one.seconds for one in group], means, yerr=[below, above], fmt="o", color=colour,
                          markersize=5, elinewidth=0.8, label=label)  # fmt: skip
    axes.step([one.seconds for one in best], [one.quality.mean for one in best], where="post", color=BLUE, linewidth=1)
    for one in results:
        colour = ORANGE if one.number in numbers else GREY
        axes.annotate(str(one.number), (one.seconds, one.quality.mean), xytext=(5, 4), textcoords="offset points",
                      color=colour, fontsize=8)  # fmt: skip
    axes.set(xlabel="median seconds of an answer", ylabel="right answers", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, title="numbers: trials; bars: 95%", title_fontsize=8)
    return figure


def to_values(results: Sequence[TrialResult], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what report.json holds."""
    best = [one.number for one in find_best(results)]
    return {"format": FORMAT, "settings": dict(shared), "trials": [asdict(one) for one in results], "best": best}


def to_table(results: Sequence[TrialResult]) -> tuple[list[str], list[list[Any]]]:
    """Return what scores.csv holds: one line a trial."""
    numbers = {one.number for one in find_best(results)}
    rows = [[one.number, *one.settings.values(), one.quality.mean, one.quality.low, one.quality.high, one.seconds,
             int(one.number in numbers)] for one in results]  # fmt: skip
    return ["trial", *results[0].settings, "right", "low", "high", "median_s", "is_best"], rows
