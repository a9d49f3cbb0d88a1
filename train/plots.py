"""The figures of a run's report, drawn from its events as PNG.

Knows events and matplotlib, not what the figures are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#4a5568"


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps of a run.

    Attributes:
        file: Its file's name, without the ending.
        key: Field of the events.
        label: Of the axis.
        divisor: Of the values, for the axis' unit.
        has_evaluations: Whether `eval` events have the field too.
        starts_at_zero: Whether the axis begins at zero.
        is_smoothed: Whether a running mean is drawn over single steps.
    """

    file: str
    key: str
    label: str
    divisor: float = 1.0
    has_evaluations: bool = False
    starts_at_zero: bool = True
    is_smoothed: bool = False


LOSS = Curve("loss", "loss", "loss", has_evaluations=True, is_smoothed=True)
MARGIN = Curve("margin", "margin", "margin: reward chosen - rejected", has_evaluations=True, starts_at_zero=False,
               is_smoothed=True)  # fmt: skip
CURVES = (
    LOSS,
    MARGIN,
    Curve("learning_rate", "learning_rate", "learning rate"),
    Curve("tokens_per_s", "tokens_per_s", "tokens/s", is_smoothed=True),
    Curve("memory", "memory_bytes", "peak memory, GiB", divisor=GIB),
)


def draw_plots(
    folder: Path,
    steps: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    lengths: list[int],
    best_step: int | None,
) -> list[str]:
    """Draw every figure that the events have values for.

    Args:
        folder: Where the files go.
        steps: `step` events in order.
        evaluations: `eval` events in order.
        lengths: Tokens of each training row.
        best_step: Marked in the curves of held-out figures, or None.

    Returns:
        The names of the files, in the order to show them.
    """
    files = []
    for curve in CURVES:
        if any(event.get(curve.key) is not None for event in steps):
            draw_curve(folder / f"{curve.file}.png", curve, steps, evaluations, best_step)
            files.append(f"{curve.file}.png")
    if lengths:
        draw_lengths(folder / "lengths.png", lengths)
        files.append("lengths.png")
    return files


def draw_curve(
    path: Path, curve: Curve, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], best_step: int | None
) -> None:
    """Draw one figure over the steps of a run.

    Args:
        path: Where to.
        curve: Which.
        steps: `step` events; those without the field are left out.
        evaluations: `eval` events.
        best_step: Marked, or None.
    """
    figure, axes = _start()
    points = [(event["step"], event[curve.key] / curve.divisor) for event in steps if event.get(curve.key) is not None]
    places, values = [place for place, _ in points], [value for _, value in points]
    is_smoothed = curve.is_smoothed and len(values) >= 20
    axes.plot(places, values, color=BLUE, linewidth=0.8 if is_smoothed else 1.6, alpha=0.35 if is_smoothed else 1.0,
              marker="." if len(values) == 1 else None, label=None if is_smoothed else "training")  # fmt: skip
    if is_smoothed:
        axes.plot(places, smooth(values), color=BLUE, linewidth=1.6, label="training, running mean")
    held_out = [event for event in evaluations if curve.has_evaluations and event.get(curve.key) is not None]
    if held_out:
        axes.plot([event["step"] for event in held_out], [event[curve.key] / curve.divisor for event in held_out], "o-",
                  color=ORANGE, markersize=4, linewidth=1.0, label="held out")  # fmt: skip
        if best_step is not None:
            axes.axvline(best_step, color=GREY, linewidth=1.0, linestyle=":", label="published")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("step")
    axes.set_ylabel(curve.label)
    if curve.starts_at_zero:
        axes.set_ylim(0, 1.08 * max([*values, *(event[curve.key] / curve.divisor for event in held_out)]) or 1)
    else:
        axes.axhline(0, color=GREY, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def draw_lengths(path: Path, lengths: Sequence[int]) -> None:
    """Draw how many rows have how many tokens."""
    figure, axes = _start()
    axes.hist(lengths, bins=min(40, max(5, len(set(lengths)))), color=BLUE, edgecolor="white", linewidth=0.4)
    axes.set_xlabel("tokens of a training row")
    axes.set_ylabel("rows")
    axes.set_xlim(left=0)
    _save(figure, path)


def smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean: each value averaged with the ones before it, weights falling by a tenth."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = 0.9 * total + value, 0.9 * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _start() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # a second to import, and only the last thing a run does

    figure = Figure(figsize=(4.8, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
