"""What the check of training data tells people: figures, a histogram of lengths, repeated rows, and a marked sample.

`check_only=true` shows all of it; a run says the short form and warns. Draws with rich, in colour on a terminal and in
plain marks elsewhere. Knows rows and token ids; models and runs it does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.data import DataFile
from train.duplicates import (
    NEAR,
    Pair,
    Printer,
    find_near_repeats,
    find_other_answers,
    find_overlap,
    find_repeats,
)
from train.encoding import Encoded, measure_lengths
from train.tokens import IGNORED, Example

MAX_PAIRS_SHOWN = 5
MAX_LINES_SHOWN = 10
BAR_CHARS = 40
MAX_SPAN_CHARS = 600
"""Of a stretch of the sample that is longer, the middle is left out."""
LENGTH_EDGES = (0, *(edge for power in range(4, 21) for edge in (2**power, 3 * 2 ** (power - 1))))
"""Where the histogram's bins begin, in tokens: 0, 16, 24, 32, 48, 64, 96, …"""


@dataclass(frozen=True, slots=True)
class Findings:
    """Rows that say the same, in the training file and across both.

    Attributes:
        repeats: Training rows that repeat an earlier one exactly.
        near_repeats: Training rows that nearly repeat an earlier one.
        other_answers: Training rows that ask what an earlier one asks and answer otherwise; none for preferences.
        overlap: Held-out rows that are training rows.
        near_overlap: Held-out rows that nearly are.
    """

    repeats: list[Pair] = field(default_factory=list)
    near_repeats: list[Pair] = field(default_factory=list)
    other_answers: list[Pair] = field(default_factory=list)
    overlap: list[Pair] = field(default_factory=list)
    near_overlap: list[Pair] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Return one line for each kind that was found, with the first pairs of lines."""
        kinds = (
            (self.repeats, "=", "training rows that repeat an earlier row exactly"),
            (self.near_repeats, "~", f"training rows that nearly repeat an earlier row (similarity {NEAR} and more)"),
            (self.other_answers, "/", "training rows that ask what an earlier row asks and answer otherwise"),
            (self.overlap, "=", "held-out rows that are training rows too: the evaluation flatters"),
            (self.near_overlap, "~", "held-out rows that are nearly training rows: the evaluation may flatter"),
        )
        return [_describe_pairs(*kind) for kind in kinds if kind[0]]

    def add_counts(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Add the counts to what the adapter's manifest says about the data, and return it.

        Args:
            summary: With the parts `train` and `valid`, as data.summarize_all returns it.
        """
        summary["train"].update(
            repeats=len(self.repeats), near_repeats=len(self.near_repeats), other_answers=len(self.other_answers)
        )
        if summary["valid"]:
            summary["valid"].update(overlap=len(self.overlap), near_overlap=len(self.near_overlap))
        return summary


def _describe_pairs(pairs: list[Pair], sign: str, what: str) -> str:
    shown = ", ".join(f"{pair.line} {sign} {pair.like}" for pair in pairs[:MAX_PAIRS_SHOWN])
    rest = f" and {len(pairs) - MAX_PAIRS_SHOWN:,} more" if len(pairs) > MAX_PAIRS_SHOWN else ""
    return f"{len(pairs):,} {what} (lines {shown}{rest})"


def describe_counts(part: dict[str, Any]) -> str:
    """Return what the manifest says about repeated rows of one file, for the report; empty where there are none."""
    words = {
        "repeats": "repeat an earlier one",
        "near_repeats": "nearly repeat an earlier one",
        "other_answers": "answer an earlier question otherwise",
        "overlap": "are training rows too",
        "near_overlap": "nearly are training rows",
    }
    return ", ".join(f"{part[key]:,} {text}" for key, text in words.items() if part.get(key))


def compare_files(train: DataFile, valid: DataFile | None) -> Findings:
    """Read the training rows and the held-out ones once more and find those that say the same."""
    printer = Printer()
    for line, row in train.read():
        printer.add(line, row)
    prints = printer.finish()
    overlap: list[Pair] = []
    near_overlap: list[Pair] = []
    if valid:
        held_out = Printer(printer.common)
        for line, row in valid.read():
            held_out.add(line, row)
        overlap, near_overlap = find_overlap(prints, held_out.finish())
    return Findings(
        repeats=find_repeats(prints),
        near_repeats=find_near_repeats(prints),
        other_answers=[] if train.layout.is_preference else find_other_answers(prints),
        overlap=overlap,
        near_overlap=near_overlap,
    )


def open_console() -> Console:
    """Return a console for the check: as wide as the terminal, or 120 columns where nobody looks."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def show_check(
    console: Console,
    parts: Sequence[tuple[DataFile, Encoded]],
    findings: Findings,
    tokenizer: Any,
) -> None:
    """Print everything that the check found out.

    Args:
        console: Where to.
        parts: The training file and, where there is one, the held-out file.
        findings: Of both.
        tokenizer: The base model's.
    """
    console.print(_draw_figures(parts))
    for file, encoded in parts:
        console.print(f"\nTokens a row, {file.path.name}")
        for line in draw_histogram(measure_lengths(encoded)):
            console.print(line, markup=False)
    console.print("\nRows that say the same")
    for line in findings.describe() or ["none"]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    shown = parts[0][1].examples[: 2 if parts[0][0].layout.is_preference else 1]
    for name, example in zip(("chosen", "rejected") if len(shown) == 2 else ("",), shown, strict=True):
        console.print(f"\nThe first training row{f' with its {name} answer' if name else ''}, what is learned marked")
        console.print(draw_sample(example, tokenizer, is_terminal=console.is_terminal), soft_wrap=True)


def _draw_figures(parts: Sequence[tuple[DataFile, Encoded]]) -> Table:
    table = Table(title="What the tokenizer sees", title_justify="left")
    table.add_column("")
    for file, _ in parts:
        table.add_column(file.path.name, justify="right", overflow="fold")
    columns = [_list_figures(file, encoded) for file, encoded in parts]
    for index, (label, _) in enumerate(columns[0]):
        table.add_row(label, *(column[index][1] for column in columns))
    return table


def _list_figures(file: DataFile, encoded: Encoded) -> list[tuple[str, str]]:
    lengths = measure_lengths(encoded)
    share = encoded.trained_tokens / max(1, encoded.tokens)
    return [
        ("format", file.layout.describe()),
        ("rows", f"{file.rows:,}"),
        ("tokens", f"{encoded.tokens:,}"),
        ("tokens learned", f"{encoded.trained_tokens:,} ({share:.1%})"),
        ("tokens a row, median", f"{np.median(lengths):,.0f}"),
        ("tokens a row, 95 of 100", f"{np.quantile(lengths, 0.95):,.0f}"),
        ("tokens a row, longest before cutting", f"{encoded.longest:,}"),
        ("rows cut at trainer.max_length", _describe_cut(encoded.cut_lines)),
    ]


def _describe_cut(lines: Sequence[int]) -> str:
    if not lines:
        return "none"
    more = ", …" if len(lines) > MAX_LINES_SHOWN else ""
    return f"{len(lines):,} (lines {', '.join(map(str, lines[:MAX_LINES_SHOWN]))}{more})"


def count_lengths(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return the histogram of lengths.

    Returns:
        (first length of the bin, last length, rows) from the bin of the shortest row to that of the longest.
    """
    counts = np.bincount(np.searchsorted(LENGTH_EDGES, lengths, side="right") - 1, minlength=len(LENGTH_EDGES))
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    ends = (*(edge - 1 for edge in LENGTH_EDGES[1:]), int(lengths.max()))
    return [(LENGTH_EDGES[at], ends[at], int(counts[at])) for at in range(used[0], used[-1] + 1)]


def draw_histogram(lengths: npt.NDArray[np.int64]) -> list[str]:
    """Return the histogram of lengths as lines with bars."""
    bins = count_lengths(lengths)
    most = max((rows for _, _, rows in bins), default=1)
    return [
        f"  {low:>7,} to {high:<9,} {'█' * max(int(rows > 0), round(BAR_CHARS * rows / most)):<{BAR_CHARS}} {rows:,}"
        for low, high, rows in bins
    ]


def split_learned(example: Example) -> Iterable[tuple[list[int], bool]]:
    """Yield the stretches of an example: token ids, and whether they are learned."""
    ids, is_learned = example["input_ids"], [label != IGNORED for label in example["labels"]]
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or is_learned[end] != is_learned[start]:
            yield ids[start:end], is_learned[start]
            start = end


def draw_sample(example: Example, tokenizer: Any, *, is_terminal: bool) -> Text:
    """Return an example as the model reads it, special tokens and all, with what is learned in colour or in ⟦ ⟧."""
    text = Text()
    for ids, is_learned in split_learned(example):
        span = show_span(tokenizer.decode(ids, skip_special_tokens=False))
        if is_terminal:
            text.append(span, "bold green" if is_learned else "dim")
        else:
            text.append(f"⟦{span}⟧" if is_learned else span)
    return text


def show_span(text: str) -> str:
    """Return a text fit for a terminal: control characters spelled out, the middle of a long one left out."""
    safe = "".join(letter if letter.isprintable() or letter in "\n\t" else f"\\u{ord(letter):04x}" for letter in text)
    half = MAX_SPAN_CHARS // 2
    return safe if len(safe) <= MAX_SPAN_CHARS else f"{safe[:half]} […] {safe[-half:]}"
