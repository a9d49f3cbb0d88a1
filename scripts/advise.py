"""RAG, fine-tuning or both, by the written rules: python scripts/advise.py [--changes-per-month 4] [--citations yes].

What no flag says is asked on a terminal; Enter means: not known. Elsewhere it stays unknown, and the answer names it.
`--verdict FILE` reads the report.json of scripts/verdict.py and shows where rules and measurement agree. Measures
nothing: python scripts/verdict.py does.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config import run_command
from core.errors import InputError, describe_os_error
from evaluation.decision import Outcome
from evaluation.rules import Advice, Situation, advise, compare_with_verdict

YES_WORDS = {"yes": True, "y": True, "true": True, "no": False, "n": False, "false": False}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a report says: the verdict's arm, the open ones, all that were measured, and whether the data decided."""

    arm: str | None
    open: list[str]
    arms: list[str]
    is_decided: bool


def read_yes(text: str) -> bool:
    """Return what yes or no means."""
    try:
        return YES_WORDS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"wanted yes or no, found {text!r}") from None


def read_count(text: str) -> int:
    """Return a whole number that is not negative; commas between thousands are taken."""
    try:
        number = int(text.replace(",", ""))
    except ValueError:
        raise ValueError(f"wanted a whole number, found {text!r}") from None
    if number < 0:
        raise ValueError(f"wanted at least 0, found {number}")
    return number


def read_rate(text: str) -> float:
    """Return a number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"wanted a number, found {text!r}") from None
    if not 0 <= number < float("inf"):
        raise ValueError(f"wanted at least 0, found {text}")
    return number


QUESTIONS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("changes_per_month", "--changes-per-month", read_rate, "How often does the knowledge change a month? (0.1, 1, 8)"),
    ("needs_citations", "--citations", read_yes, "Must answers name their sources? (yes, no)"),
    ("needs_format", "--format", read_yes, "Must answers keep a format or a tone? (yes, no)"),
    ("prompt_keeps_format", "--prompt-is-enough", read_yes, "Do instructions alone make the model keep it? (yes, no)"),
    ("examples", "--examples", read_count, "How many good examples of question and answer are there?"),
    ("is_latency_critical", "--latency-critical", read_yes, "Does a second more or less matter? (yes, no)"),
    ("documents", "--documents", read_count, "How many documents hold the knowledge?"),
    ("queries_per_month", "--queries-per-month", read_count, "How many questions a month?"),
)
"""Field of Situation, flag, reader, question."""


def take(reader: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader whose own words reach whoever has mistyped a flag; argparse would name its function instead."""

    def read(text: str) -> Any:
        try:
            return reader(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(
        description="RAG, fine-tuning or both, by the written rules.", epilog="To measure: python scripts/verdict.py"
    )
    for field, flag, reader, question in QUESTIONS:
        parser.add_argument(flag, dest=field, type=take(reader), metavar=reader.__name__.removeprefix("read_").upper(),
                            help=question)  # fmt: skip
    parser.add_argument("--verdict", type=Path, help="report.json of scripts/verdict.py, to compare with")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_args(arguments)


def ask_what_is_missing(situation: Situation, ask: Callable[[str], str] = input) -> None:
    """Ask for every fact that is not known; an empty answer leaves it so, and the end of the input all that follow.

    Args:
        situation: Filled in place.
        ask: Returns the answer to a question.
    """
    for field, _, reader, question in QUESTIONS:
        is_idle = field == "prompt_keeps_format" and not situation.needs_format
        while getattr(situation, field) is None and not is_idle:
            try:
                text = ask(f"{question} ").strip()
            except EOFError:  # Ctrl-D
                return
            if not text:
                break
            try:
                setattr(situation, field, reader(text))
            except ValueError as error:
                print(f"  {error}", file=sys.stderr)


def read_verdict(path: Path) -> Measured:
    """Return the verdict of a report.

    Raises:
        NotFound: There is no such file.
        InputError: It is not the report.json of scripts/verdict.py.
    """
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))["verdict"]
        return Measured(
            verdict["arm"], list(verdict["open"]), list(verdict["means"]), verdict["outcome"] == Outcome.decided.value
        )
    except OSError as error:
        raise describe_os_error(error, f"read {path}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"--verdict: wanted the report.json of scripts/verdict.py, found something else in {path}."
        ) from error


def show(advice: Advice, agreement: str | None) -> None:
    """Print the rules, what they say together, and the next command."""
    table = Table("rule", "speaks for", "because")
    for finding in advice.findings:
        table.add_row(finding.rule, finding.side.value, finding.reason)
    console.print(table)
    console.print(f"[bold]{advice.summary}[/bold]  (arm: {advice.arm})")
    if advice.unknown:
        names = {field: flag for field, flag, _, _ in QUESTIONS}
        console.print(f"not known: {', '.join(names[field] for field in advice.unknown)}")
    console.print(agreement or "next: measure it, python scripts/verdict.py questions=Q.jsonl store=NAME run=ID")


def main() -> None:
    """Read the situation, apply the rules, show them."""
    arguments = parse_arguments()
    situation = Situation(**{field: getattr(arguments, field) for field, _, _, _ in QUESTIONS})
    measured = read_verdict(arguments.verdict) if arguments.verdict else None
    if sys.stdin.isatty() and not arguments.json:
        ask_what_is_missing(situation)
    advice = advise(situation)
    agreement = (
        compare_with_verdict(advice, measured.arm, measured.open, measured.arms, is_decided=measured.is_decided)
        if measured
        else None
    )
    if arguments.json:
        values = asdict(advice) | {"agreement": agreement}
        print(json.dumps(values, indent=2, ensure_ascii=False, default=lambda value: value.value))
    else:
        show(advice, agreement)


if __name__ == "__main__":
    run_command(main)
