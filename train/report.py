"""A run's report for people: report.md with what came of it, plots, sample answers, settings, and the next commands.

Reads the run's events and manifest; knows nothing of the trainer.
"""

import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from core.events import read_events
from core.layout import write_file
from core.manifest import AdapterManifest
from train.check_report import describe_counts
from train.folder import read_evaluations, read_steps
from train.plots import draw_plots

MAX_SAMPLE_COLUMNS = 4
"""Evaluations shown side by side: the first, the last, the published one and what lies between."""
MAX_CELL_CHARS = 400
TEMPLATE = """# Run {run_id}

{base} fine-tuned by {method} on {rows:,} {kind} ({tokens:,} tokens): {steps} steps in {seconds}.

{figures}
{outcome}
{tokens_per_s:,.0f} non-padding tokens a second on {hardware}.

{plots}

## Data
{data}
{samples}
## Settings
```yaml
{settings}```

## Make it again
```
{command}
```
Made with {versions}.

## Next
```
{next_command}
tensorboard --logdir {folder}
```
The adapter learned against {quantization} weights and is served on the base's own: judge it by its answers through the
server.
"""
ROWS = (
    ("loss", "loss"),
    ("token accuracy", "token_accuracy"),
    ("margin (reward of chosen - rejected)", "margin"),
    ("pairs whose chosen answer is rewarded more", "accuracy"),
)
"""Figures of the table: what people read, and the events' field."""


def write_report(
    folder: Path,
    manifest: AdapterManifest,
    configuration: dict[str, object],
    arguments: list[str],
    hardware: str,
    lengths: list[int],
) -> Path:
    """Write report.md and its plots into a run's folder.

    Args:
        folder: runs/<run_id>.
        manifest: Of the adapter.
        configuration: The resolved configuration.
        arguments: Of the command line that started the run.
        hardware: What it ran on, for people.
        lengths: Tokens of each training row.

    Returns:
        The report's path.
    """
    steps, evaluations = read_steps(folder), read_evaluations(folder)
    metrics = manifest.metrics
    published = metrics.get("best_step") or metrics["steps"]
    plots = draw_plots(folder, steps, evaluations, lengths, published)
    path = folder / "report.md"
    text = TEMPLATE.format(
        run_id=manifest.run_id,
        next_command=next_command(manifest.run_id, arguments),
        folder=folder / "tensorboard",
        base=manifest.base.name,
        method=manifest.method,
        rows=manifest.data["train"]["rows"],
        kind="pairs" if manifest.method == "dpo" else "chats",
        tokens=manifest.data["train"]["tokens"],
        steps=metrics["steps"],
        seconds=_describe_seconds(metrics["seconds"]),
        figures=describe_figures(steps, evaluations, published),
        outcome=_describe_outcome(folder, metrics, evaluations),
        tokens_per_s=metrics["tokens_per_s"],
        hardware=hardware,
        plots="\n".join(f"![{Path(file).stem.replace('_', ' ')}]({file})" for file in plots),
        data=_describe_data(manifest.data),
        samples=describe_samples(folder, published),
        settings=yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True),
        command=shlex.join(["python", "train/run.py", *_with_run_id(arguments, manifest.run_id)]),
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        quantization="NF4-rounded" if manifest.quantization["kind"] == "nf4" else "the base's own",
    )
    write_file(path, text)
    return path


def next_command(run_id: str, arguments: list[str]) -> str:
    """Return what to type after a run; it names the data directory where the run's own command line did."""
    where = [shlex.quote(argument) for argument in arguments if argument.startswith("paths.data_dir=")]
    return " ".join([f"python serve/run.py adapters=[{run_id}]", *where])


def describe_figures(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], published: int) -> str:
    """Return the table of figures: training at its first and last step, held-out rows before and after.

    Args:
        steps: `step` events in order.
        evaluations: `eval` events in order.
        published: Step of the adapter that is published.
    """
    before = next((event for event in evaluations if event["step"] == 0), {})
    after: dict[str, Any] = next((event for event in reversed(evaluations) if event["step"] == published), {})
    columns: list[tuple[str, dict[str, Any]]] = [
        ("first step", steps[0] if steps else {}),
        ("last step", steps[-1] if steps else {}),
    ]
    columns += [("held out, before", before)] if before else []
    columns += [("held out, published", after)] if after else []
    lines = ["| | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, key in ROWS:
        if any(event.get(key) is not None for _, event in columns):
            lines.append(f"| {label} | " + " | ".join(_number(event.get(key)) for _, event in columns) + " |")
    return "\n".join(lines) + "\n"


def _describe_outcome(folder: Path, metrics: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """Return what was best and why the run ended, a sentence each."""
    notes = [event["message"] for event in read_events(folder / "events.jsonl") if event["type"] == "log"]
    lines = [f"- {note[0].upper()}{note[1:]}." for note in dict.fromkeys(notes)]
    scored = [event for event in evaluations if event["step"] > 0]
    if len(scored) > 1 and metrics.get("best_step") is None:
        best = min(scored, key=lambda event: event["loss"])
        published = metrics["steps"]
        lines.append(
            f"- The published adapter is the last, of step {published}"
            + (
                ", which was also the best on the held-out rows."
                if best["step"] == published
                else f"; on the held-out rows step {best['step']} was better (loss {best['loss']:.4f})."
            )
        )
    return "\n".join(lines) + "\n" if lines else ""


def describe_samples(folder: Path, published: int) -> str:
    """Return the section with the fixed prompts and their answers side by side; nothing where there are none.

    Args:
        folder: runs/<run_id>.
        published: Step of the adapter that is published.
    """
    answers: dict[int, dict[int, dict[str, Any]]] = {}
    for event in read_events(folder / "events.jsonl"):
        if event["type"] == "sample":
            answers.setdefault(event["index"], {})[event["step"]] = event
    sections = []
    for index in sorted(answers):
        by_step = answers[index]
        chosen = choose_columns(sorted(by_step), published)
        any_event = by_step[chosen[0]]
        names = [_name_column(step, published) for step in chosen]
        cells = [by_step[step]["answer"] for step in chosen]
        if "wanted" in any_event:
            names.append("in the data")
            cells.append(any_event["wanted"])
        quoted = "\n".join(f"> {line}" for line in _escape(any_event["prompt"]).splitlines())
        table = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n| {' | '.join(map(_cell, cells))} |\n"
        sections.append(f"{quoted}\n\n{table}")
    return "\n## Sample answers\nGreedy, cut at trainer.sample_tokens.\n\n" + "\n".join(sections) if sections else ""


def choose_columns(steps: list[int], published: int) -> list[int]:
    """Return which evaluations to show side by side: first, last and published, then the ones most in the middle."""
    chosen = {steps[0], steps[-1]} | ({published} & set(steps))
    rest = [step for step in steps if step not in chosen]
    while rest and len(chosen) < MAX_SAMPLE_COLUMNS:
        chosen.add(rest.pop(len(rest) // 2))
    return sorted(chosen)


def _name_column(step: int, published: int) -> str:
    if step == 0:
        return "before"
    return f"step {step} (published)" if step == published else f"step {step}"


def _cell(text: str) -> str:
    """Return a text as one cell of a Markdown table that shows it as it is; the end of a long one is left out."""
    shown = text.strip()
    shown = shown if len(shown) <= MAX_CELL_CHARS else f"{shown[:MAX_CELL_CHARS].rstrip()} …"
    escaped = _escape(shown).replace("|", "\\|")
    return "<br>".join(escaped.splitlines()) or "(nothing)"


def _escape(text: str) -> str:
    """Return a text in which Markdown sees no element of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _with_run_id(arguments: list[str], run_id: str) -> list[str]:
    """Return the arguments with a run id of its own for the repetition: a name is never used twice."""
    return [argument for argument in arguments if not argument.startswith(("run_id=", "resume="))] + [
        f"run_id={run_id}-again"
    ]


def _describe_data(data: dict[str, Any]) -> str:
    lines = []
    for name, part in data.items():
        if part:
            share = part["trained_tokens"] / max(1, part["tokens"])
            cut = (
                f"; {part['cut_rows']} rows were longer than max_length and lost their end" if part["cut_rows"] else ""
            )
            lines.append(
                f"- {name}: `{part['path']}`, {part['rows']:,} rows, {part['tokens']:,} tokens, {share:.0%} "
                f"of them learned, "
                f"longest {part['longest']:,}{cut} (sha256 {part['sha256'][:12]})"
                + (f"; {repeated}" if (repeated := describe_counts(part)) else "")
            )
    return "\n".join(lines)


def _describe_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
