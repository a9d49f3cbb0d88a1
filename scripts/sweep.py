"""Search settings of retrieval and LoRA in one Optuna study: python scripts/sweep.py questions=Q.jsonl store=NAME.

A trial serves the assistant with its settings (after training the adapter, where `train` is given), asks the questions
through the endpoint, and is scored as the verdict scores: share of right answers, and median seconds of an answer. The
study, every answer and every run stay on disk: the same command goes on. Ends with the settings that no other trial
beats in both (Pareto), as a report in reports/sweep-NAME/. Settings are chosen on these questions: judge the
winner on others. Keys stand in conf/sweep.yaml.
"""

from core.entry import begin_program

begin_program()

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING, DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, InputError, MissingDependency
from core.layout import DataDir, check_name
from core.logs import configure_logging
from core.next_command import name_data_dir, write_next_command
from evaluation.answers import AskConfig, ask_all, read_answers
from evaluation.metrics import score_all
from evaluation.pareto import TrialResult, find_best, lay_out, to_table, to_values
from evaluation.questions import Question, read_questions, spread, to_row
from evaluation.report import write_report
from evaluation.resampling import Interval, bootstrap_mean
from scripts.server_process import PROJECT, run_server
from scripts.verdict_plan import VerdictConfig, list_serve_options, make_plan, read_text
from serve.progress import CountProgress, say

if TYPE_CHECKING:
    import optuna

SEARCHED = ("k", "dense_weight", "rank", "learning_rate", "epochs")
LEARNED = SEARCHED[2:]
"""Settings of a training."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class SpaceConfig:
    """What is searched.

    Attributes:
        k: Fewest and most passages that the model reads.
        dense_weight: Least and largest weight of dense search against BM25, 0 to 1.
        rank: LoRA ranks to choose from; with `train` only.
        learning_rate: Smallest and largest, searched by its logarithm; with `train` only.
        epochs: Fewest and most, in halves; with `train` only.
    """

    k: list[int] = field(default_factory=lambda: [1, 6])
    dense_weight: list[float] = field(default_factory=lambda: [0.0, 1.0])
    rank: list[int] = field(default_factory=lambda: [8, 16])
    learning_rate: list[float] = field(default_factory=lambda: [2e-4, 2e-3])
    epochs: list[float] = field(default_factory=lambda: [1.0, 3.0])

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"space.{name}: wanted two values, the smaller first, within {low:g} and {high:g}; found {list(values)}"
            for name, values, low, high in (
                ("k", self.k, 1, 50),
                ("dense_weight", self.dense_weight, 0, 1),
                ("learning_rate", self.learning_rate, 1e-6, 1e-1),
                ("epochs", self.epochs, 0.5, 100),
            )
            if len(values) != 2 or not low <= values[0] <= values[1] <= high
        ]
        if not self.rank:
            faults.append("space.rank: wanted at least one rank, found none")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(slots=True)
class SweepConfig:
    """What scripts/sweep.py can be told.

    Attributes:
        questions: JSON lines of questions with what a right answer must meet (docs/verdict.md).
        store: The store that is searched.
        name: Of the study, `reports/sweep-NAME/`; null: the name of the question file.
        base: The model of a study without training.
        train: Overrides of train/run.py that every training shares; null: no training, `base` answers.
        instructions: File with the system message over the passages; null: the server's own.
        trials: Trials in all, those of earlier calls counted.
        seed: Of the sampler.
        limit: Take so many questions, spread evenly over the file; null takes all.
        max_tokens: Most tokens of an answer.
        concurrency: Questions at the same time.
        timeout_s: Longest wait for one answer.
        serve: More overrides of serve/run.py.
        space: What is searched.
        paths: Where the data directory is.
    """

    questions: str = MISSING
    store: str = MISSING
    name: str | None = None
    base: str | None = None
    train: list[str] | None = None
    instructions: str | None = None
    trials: int = 20
    seed: int = 0
    limit: int | None = None
    max_tokens: int = 256
    concurrency: int = 8
    timeout_s: float = 600.0
    serve: list[str] = field(default_factory=list)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check what one key alone cannot tell."""
        faults = []
        if (self.base is None) == (self.train is None):
            faults.append("base: wanted either base (nothing is trained) or train (overrides of train/run.py)")
        if self.trials < 1:
            faults.append(f"trials: wanted at least 1, found {self.trials}")
        if faults:
            raise ConfigError("; ".join(faults))


def main(composed: DictConfig) -> None:
    """Open the study, run what is missing, show what came out."""
    configure_logging(level="WARNING")
    config = load_config(composed, SweepConfig)
    fail = import_optuna().trial.TrialState.FAIL
    data = DataDir(Path(config.paths.data_dir))
    name = check_name(config.name or Path(config.questions).stem, "name")
    questions = spread(read_questions(Path(config.questions)), config.limit)
    folder = data.reports / f"sweep-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = describe_study(config, questions)
    study = open_study(folder, config, shared)
    while (done := len(list_results(study))) < config.trials:
        trial = study.ask()
        settings = suggest(trial, config)
        say(f"trial        {trial.number}, {done + 1} of {config.trials}: {json.dumps(settings)}")
        try:
            quality, seconds = run_trial(config, data, folder, name, settings, questions)
        except InputError:
            study.tell(trial, state=fail)  # the same command goes on without these settings
            raise
        trial.set_user_attr("quality", asdict(quality))
        study.tell(trial, [quality.mean, seconds])
        say(f"reached      {quality.mean:.1%} right, median {seconds:.2f} s")
    results = list_results(study)
    best = find_best(results)
    write_report(folder, f"Sweep: {name}", lay_out(results, shared), to_values(results, shared), to_table(results))
    show(best)
    winner = max(best, key=lambda one: one.quality.mean)
    console.print(f"wrote {folder}\nnext, on other questions: {write_command(config, name, winner)}", soft_wrap=True,
                  markup=False)  # fmt: skip


def import_optuna() -> ModuleType:
    """Return the library, which comes with the extras `sweep` and `dev`.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency(
            "sweep: wanted the package optuna, found none. Install it: .venv/bin/uv pip install 'optuna>=5,<6'"
        ) from error
    module: ModuleType = optuna
    return module


def describe_study(config: SweepConfig, questions: Sequence[Question]) -> dict[str, Any]:
    """Return all that every trial of a study shares; trials under other conditions cannot be compared."""
    return {
        "questions": Path(config.questions).name,
        "n": len(questions),
        "questions_hash": _hash([to_row(question) for question in questions]),
        "store": config.store,
        "base": config.base,
        "train": None if config.train is None else list(config.train),
        "instructions": read_text(config.instructions, "instructions"),
        "max_tokens": config.max_tokens,
        "concurrency": config.concurrency,
        "serve": list(config.serve),
        "space": {key: list(values) for key, values in asdict(config.space).items()},
    }


def open_study(folder: Path, config: SweepConfig, shared: Mapping[str, Any]) -> "optuna.Study":
    """Open the study, or go on with it: a trial that a kill broke off is tried again with its settings.

    Args:
        folder: Of the report.
        config: The configuration.
        shared: What every trial has in common.

    Raises:
        ConfigError: It was made for something else.
    """
    library = import_optuna()
    library.logging.set_verbosity(library.logging.WARNING)
    study: optuna.Study = library.create_study(
        study_name="sweep",
        storage=f"sqlite:///{folder / 'study.db'}",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    earlier = study.user_attrs.get("made_for", shared)
    differing = [f"{key}: {earlier.get(key)} then, {now} now" for key, now in shared.items() if earlier.get(key) != now]
    if differing:
        raise ConfigError(
            f"name: wanted the study as it was begun, found another ({'; '.join(differing)}). Give another name.",
            param="name",
        )
    study.set_user_attr("made_for", dict(shared))
    begun = len(study.get_trials(deepcopy=False))
    study.sampler = library.samplers.TPESampler(seed=config.seed + begun)  # the same seed would draw the same again
    for trial in study.get_trials(states=(library.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=library.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def suggest(trial: "optuna.Trial", config: SweepConfig) -> dict[str, Any]:
    """Return the settings that a trial is to try."""
    space = config.space
    trial.suggest_int("k", space.k[0], space.k[1])
    trial.suggest_float("dense_weight", space.dense_weight[0], space.dense_weight[1])
    if config.train is not None:
        trial.suggest_categorical("rank", list(space.rank))
        trial.suggest_float("learning_rate", space.learning_rate[0], space.learning_rate[1], log=True)
        trial.suggest_float("epochs", space.epochs[0], space.epochs[1], step=0.5)
    return round_settings(trial.params)


def round_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was drawn as it is tried and told: digits that change nothing are left out."""
    settings = {key: params[key] for key in SEARCHED if key in params}
    settings["dense_weight"] = round(settings["dense_weight"], 3)
    if "learning_rate" in settings:
        settings["learning_rate"] = float(f"{settings['learning_rate']:.3g}")
    return settings


def run_trial(
    config: SweepConfig,
    data: DataDir,
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
) -> tuple[Interval, float]:
    """Train where that is wanted, serve, ask, score; whatever is on disk already is taken.

    Returns:
        Share of right answers, and median seconds of an answer; the longest wait where none came.

    Raises:
        InputError: The training failed.
    """
    run = None
    if config.train is not None:
        run = name_run(config, name, settings)
        train(config, data, run, settings)
    measured = VerdictConfig(
        questions=config.questions,
        store=config.store,
        run=run,
        base=config.base,
        instructions=config.instructions,
        k=settings["k"],
        serve=[*config.serve, *list_search_options(settings)],
    )
    measured.paths.data_dir = config.paths.data_dir
    plan = make_plan(measured, data)
    arms = [arm for arm in plan.arms if arm.name == ("rag" if run is None else "hybrid")]
    path = folder / f"trial-{_hash(dict(settings))}.jsonl"
    with ExitStack() as stack:
        url = "http://nobody"
        if not is_answered(path, questions):
            options = list_serve_options(measured, plan, None)
            url = stack.enter_context(run_server(options, data.root / "logs" / "sweep-serve.log"))
        progress = CountProgress("asking", len(questions))
        ask_config = AskConfig(url=f"{url}/v1", max_tokens=config.max_tokens, concurrency=config.concurrency,
                               timeout_s=config.timeout_s)  # fmt: skip
        answers = ask_all(questions, arms, ask_config, path, lambda _: progress.advance())
    scored = score_all(questions, answers)
    quality = bootstrap_mean(np.array([one.scores.success for one in scored]), seed=config.seed)
    seconds = [answer.latency_s for answer in answers if answer.error is None]
    return quality, statistics.median(seconds) if seconds else config.timeout_s


def is_answered(path: Path, questions: Sequence[Question]) -> bool:
    """Tell whether every answer is there: an earlier trial had the same settings, or scoring was broken off."""
    answers = read_answers(path) if path.is_file() else []
    done = {answer.question_id for answer in answers if answer.error is None}
    return done.issuperset(question.id for question in questions)


def list_search_options(settings: Mapping[str, Any]) -> list[str]:
    """Return what serve/run.py is told of a trial's search."""
    return ["search.use_tuned=false", f"search.dense_weight={settings['dense_weight']}"]


def name_run(config: SweepConfig, name: str, settings: Mapping[str, Any]) -> str:
    """Return the id of the run with a trial's settings."""
    learned = {key: settings[key] for key in LEARNED}
    return f"sweep-{name}-{_hash([learned, list(config.train or [])])}"


def train(config: SweepConfig, data: DataDir, run: str, settings: Mapping[str, Any]) -> None:
    """Train one adapter, or go on with it, or take the finished one.

    Raises:
        InputError: The training failed; its own message stands above.
    """
    if (data.run(run) / "adapter" / "manifest.json").is_file():
        return
    command = [
        "train/run.py", *(config.train or []), f"run_id={run}", "resume=auto", f"lora.rank={settings['rank']}",
        f"trainer.learning_rate={settings['learning_rate']}", f"trainer.epochs={settings['epochs']}",
        name_data_dir(str(data.root.resolve())),
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *command], cwd=PROJECT, check=False)
    if done.returncode:
        raise InputError(
            f"train: wanted a run, found exit code {done.returncode}; its message stands above. The same command goes "
            "on without these settings."
        )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def list_results(study: "optuna.Study") -> list[TrialResult]:
    """Return the finished trials in their order."""
    complete = import_optuna().trial.TrialState.COMPLETE
    return [
        TrialResult(
            trial.number, round_settings(trial.params), Interval(**trial.user_attrs["quality"]), trial.values[1]
        )
        for trial in study.get_trials(states=(complete,))
    ]


def write_command(config: SweepConfig, name: str, winner: TrialResult) -> str:
    """Return the verdict's command line with the settings of a trial."""
    settings = winner.settings
    model = f"base={config.base}" if config.train is None else f"run={name_run(config, name, settings)}"
    instructions = f" instructions={config.instructions}" if config.instructions else ""
    serve = json.dumps([*config.serve, *list_search_options(settings)], separators=(",", ":"))
    words = f"questions=OTHERS.jsonl store={config.store} {model} k={settings['k']}{instructions}"
    return write_next_command(
        "scripts/verdict.py",
        words,
        f"max_tokens={config.max_tokens}",
        f"'serve={serve}'",
        data_dir=config.paths.data_dir,
    )


def show(best: Sequence[TrialResult]) -> None:
    """Print the settings that no other trial beats."""
    table = Table("trial", "right", "interval", "median s", "settings", title="Not beaten in both")
    for one in best:
        quality = one.quality
        table.add_row(str(one.number), f"{quality.mean:.1%}", f"{quality.low:.1%} to {quality.high:.1%}",
                      f"{one.seconds:.2f}", json.dumps(one.settings))  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    run_app("sweep", main)
