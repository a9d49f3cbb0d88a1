"""A run's report for people: report.md with plots of loss, learning rate and speed, settings, and the next commands.

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
from train.folder import read_steps

PLOTS = (("loss", "loss"), ("learning_rate", "learning rate"), ("tokens_per_s", "tokens/s"))
TEMPLATE = """# Run {run_id}

{base} fine-tuned by {method} on {rows:,} chats ({tokens:,} tokens): {steps} steps in {seconds}.

| | first step | last step | held-out chats |
|---|---|---|---|
| loss | {loss_first} | {loss_last} | {eval_loss} |
| token accuracy | | | {eval_token_accuracy} |

{tokens_per_s:,.0f} non-padding tokens a second on {hardware}.

![loss](loss.png) ![learning rate](learning_rate.png) ![tokens per second](tokens_per_s.png)

## Data
{data}

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
```
The adapter learned against {quantization} weights and is served on the base's own: judge it by its answers through the
server.
"""


def write_report(
    folder: Path, manifest: AdapterManifest, configuration: dict[str, object], arguments: list[str], hardware: str
) -> Path:
    """Write report.md and its plots into a run's folder.

    Args:
        folder: runs/<run_id>.
        manifest: Of the adapter.
        configuration: The resolved configuration.
        arguments: Of the command line that started the run.
        hardware: What it ran on, for people.

    Returns:
        The report's path.
    """
    steps = read_steps(folder)
    for key, label in PLOTS:
        draw_plot(folder / f"{key}.png", steps, key, label, read_evaluations(folder) if key == "loss" else [])
    metrics = manifest.metrics
    path = folder / "report.md"
    text = TEMPLATE.format(
        run_id=manifest.run_id,
        next_command=next_command(manifest.run_id),
        base=manifest.base.name,
        method=manifest.method,
        rows=manifest.data["train"]["rows"],
        tokens=manifest.data["train"]["tokens"],
        steps=metrics["steps"],
        seconds=_describe_seconds(metrics["seconds"]),
        loss_first=_number(metrics["loss_first"]),
        loss_last=_number(metrics["loss_last"]),
        eval_loss=_number(metrics["eval_loss"]),
        eval_token_accuracy=_number(metrics["eval_token_accuracy"]),
        tokens_per_s=metrics["tokens_per_s"],
        hardware=hardware,
        data=_describe_data(manifest.data),
        settings=yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True),
        command=shlex.join(["python", "train/run.py", *_with_run_id(arguments, manifest.run_id)]),
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        quantization="NF4-rounded" if manifest.quantization["kind"] == "nf4" else "the base's own",
    )
    write_file(path, text)
    return path


def next_command(run_id: str) -> str:
    """Return what to type after a run."""
    return f"python serve/run.py adapters=[{run_id}]"


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the `eval` events of a run in order."""
    return [event for event in read_events(folder / "events.jsonl") if event["type"] == "eval"]


def draw_plot(
    path: Path, steps: list[dict[str, float]], key: str, label: str, evaluations: list[dict[str, Any]]
) -> None:
    """Draw one figure of a run over its steps as PNG.

    Args:
        path: Where to.
        steps: `step` events.
        key: Which field.
        label: Of the axis.
        evaluations: `eval` events, drawn as points where given.
    """
    from matplotlib.figure import Figure  # a second to import, and only the last thing a run does

    figure = Figure(figsize=(4.8, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([step["step"] for step in steps], [step[key] for step in steps], linewidth=1.4, label="training")
    if evaluations:
        axes.plot(
            [event["step"] for event in evaluations], [event[key] for event in evaluations], "o", label="held out"
        )
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    figure.savefig(path, metadata={"Software": None})


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
                f"- {name}: `{part['path']}`, {part['rows']:,} chats, {part['tokens']:,} tokens, {share:.0%} "
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
