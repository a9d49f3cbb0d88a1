"""Search settings of retrieval and LoRA in one Optuna study: python scripts/sweep.py questions=Q.jsonl store=NAME.

A trial serves the assistant with its settings (after training the adapter, where `train` is given), asks the questions
through the endpoint, and is scored as the verdict scores: share of right answers, and median seconds of an answer. The
study, every answer and every run stay on disk: the same command goes on. Ends with the settings that no other trial
beats in both (Pareto), as a table and a plot in reports/sweep-NAME/. Settings are chosen on these questions: judge the
winner on others. Keys stand in conf/sweep.yaml.
"""

from core.offline import switch_offline

switch_offline()

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, InputError, MissingDependency
from core.layout import DataDir, check_name, write_file, write_json
from core.logs import configure_logging
from evaluation.answers import AskConfig, ask_all
from evaluation.metrics import score_all
from evaluation.questions import Question, read_questions, spread
from evaluation.report import BLUE, GREY, ORANGE, render_svg
from scripts.server_process import PROJECT, run_server
from scripts.verdict_plan import VerdictConfig, list_serve_options, make_plan
from serve.progress import CountProgress, say

if TYPE_CHECKING:
    import optuna

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial reached.

    Attributes:
        number: Of the trial.
        settings: What was tried.
        quality: Share of right answers.
        seconds: Median of an answer.
    """

    number: int
    settings: dict[str, Any]
    quality: float
    seconds: float


def main(composed: DictConfig) -> None:
    """Open the study, run what is missing, show what came out."""
    configure_logging(level="WARNING")
    config = load_config(composed, SweepConfig)
    import_optuna()
    data = DataDir(Path(config.paths.data_dir))
    name = check_name(config.name or Path(config.questions).stem, "name")
    questions = spread(read_questions(Path(config.questions)), config.limit)
    folder = data.reports / f"sweep-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(folder, config)
    while (done := len(list_outcomes(study))) < config.trials:
        trial = study.ask()
        settings = suggest(trial, config)
        say(f"trial        {done + 1} of {config.trials}: {json.dumps(settings)}")
        quality, seconds = run_trial(config, data, folder, name, settings, questions)
        study.tell(trial, [quality, seconds])
        say(f"reached      {quality:.1%} right, median {seconds:.2f} s")
    outcomes = list_outcomes(study)
    best = find_best(outcomes)
    write_results(folder, outcomes, best)
    show(best)
    settings = max(best, key=lambda one: one.quality).settings
    console.print(f"wrote {folder}\nnext: judge {json.dumps(settings)} on other questions: python scripts/verdict.py",
                  soft_wrap=True)  # fmt: skip


def import_optuna() -> ModuleType:
    """Return the library, which comes with the extra `sweep`.

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


def open_study(folder: Path, config: SweepConfig) -> "optuna.Study":
    """Open the study, or go on with it: a trial that a kill broke off is tried again with its settings.

    Raises:
        ConfigError: It was made for another space.
    """
    library = import_optuna()
    library.logging.set_verbosity(library.logging.WARNING)
    study: optuna.Study = library.create_study(
        study_name="sweep",
        storage=f"sqlite:///{folder / 'study.db'}",
        directions=["maximize", "minimize"],
        sampler=library.samplers.TPESampler(seed=config.seed),
        load_if_exists=True,
    )
    made_for = {
        "questions": Path(config.questions).name,
        "limit": config.limit,
        "trains": config.train is not None,
        "space": {key: list(values) for key, values in asdict(config.space).items()},
    }
    earlier = study.user_attrs.get("made_for")
    if earlier not in (None, made_for):
        raise ConfigError(f"name: wanted the study of {earlier}, found other settings: {made_for}. Give another name.")
    study.set_user_attr("made_for", made_for)
    for trial in study.get_trials(states=(library.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=library.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def suggest(trial: "optuna.Trial", config: SweepConfig) -> dict[str, Any]:
    """Return the settings that a trial is to try."""
    space = config.space
    settings: dict[str, Any] = {
        "k": trial.suggest_int("k", space.k[0], space.k[1]),
        "dense_weight": trial.suggest_float("dense_weight", space.dense_weight[0], space.dense_weight[1]),
    }
    settings["dense_weight"] = round(settings["dense_weight"], 3)
    if config.train is not None:
        settings["rank"] = trial.suggest_categorical("rank", list(space.rank))
        rate = trial.suggest_float("learning_rate", space.learning_rate[0], space.learning_rate[1], log=True)
        settings["learning_rate"] = float(f"{rate:.3g}")
        settings["epochs"] = trial.suggest_float("epochs", space.epochs[0], space.epochs[1], step=0.5)
    return settings


def run_trial(
    config: SweepConfig,
    data: DataDir,
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
) -> tuple[float, float]:
    """Train where that is wanted, serve, ask, score; whatever is on disk already is taken.

    Returns:
        Share of right answers, and median seconds of an answer.
    """
    run = None
    if config.train is not None:
        trained = {key: settings[key] for key in ("rank", "learning_rate", "epochs")}
        run = f"sweep-{name}-{_hash(trained)}"
        train(config, data, run, trained)
    measured = VerdictConfig(
        questions=config.questions,
        store=config.store,
        run=run,
        base=config.base,
        instructions=config.instructions,
        k=settings["k"],
        serve=[*config.serve, "search.use_tuned=false", f"search.dense_weight={settings['dense_weight']}"],
    )
    measured.paths.data_dir = config.paths.data_dir
    plan = make_plan(measured, data)
    arms = [arm for arm in plan.arms if arm.name == ("rag" if run is None else "hybrid")]
    path = folder / f"trial-{_hash(settings)}.jsonl"
    with run_server(list_serve_options(measured, plan, None), data.root / "logs" / "sweep-serve.log") as url:
        progress = CountProgress("asking", len(questions))
        ask_config = AskConfig(url=f"{url}/v1", max_tokens=config.max_tokens, concurrency=config.concurrency,
                               timeout_s=config.timeout_s)  # fmt: skip
        answers = ask_all(questions, arms, ask_config, path, lambda _: progress.advance())
    scored = score_all(questions, answers)
    quality = statistics.fmean(one.scores.success for one in scored)
    return quality, statistics.median(one.answer.latency_s for one in scored)


def train(config: SweepConfig, data: DataDir, run: str, trained: Mapping[str, Any]) -> None:
    """Train one adapter, or go on with it, or take the finished one.

    Raises:
        InputError: The training failed; its own message stands above.
    """
    if (data.run(run) / "adapter" / "manifest.json").is_file():
        return
    command = [
        "train/run.py", *(config.train or []), f"run_id={run}", "resume=auto", f"lora.rank={trained['rank']}",
        f"trainer.learning_rate={trained['learning_rate']}", f"trainer.epochs={trained['epochs']}",
        f"paths.data_dir={data.root.resolve()}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *command], cwd=PROJECT, check=False)
    if done.returncode:
        raise InputError(f"train: wanted a run, found exit code {done.returncode}; its message stands above.")


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def list_outcomes(study: "optuna.Study") -> list[Outcome]:
    """Return the finished trials in their order."""
    complete = import_optuna().trial.TrialState.COMPLETE
    return [
        Outcome(trial.number, dict(trial.params), trial.values[0], trial.values[1])
        for trial in study.get_trials(states=(complete,))
    ]


def find_best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats in both quality and time, the quickest first."""
    best = [
        one
        for one in outcomes
        if not any(
            other.quality >= one.quality
            and other.seconds <= one.seconds
            and (other.quality > one.quality or other.seconds < one.seconds)
            for other in outcomes
        )
    ]
    return sorted(best, key=lambda one: (one.seconds, one.number))


def write_results(folder: Path, outcomes: Sequence[Outcome], best: Sequence[Outcome]) -> None:
    """Write trials.json and pareto.svg."""
    from matplotlib.figure import Figure

    numbers = {one.number for one in best}
    rows = [{"trial": one.number, "quality": round(one.quality, 6), "seconds": round(one.seconds, 6),
             "settings": one.settings, "best": one.number in numbers} for one in outcomes]  # fmt: skip
    write_json(folder / "trials.json", rows)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter([one.seconds for one in outcomes], [one.quality for one in outcomes], color=GREY, s=16)
    axes.plot([one.seconds for one in best], [one.quality for one in best], "o-", color=BLUE)
    for one in best:
        axes.annotate(str(one.number), (one.seconds, one.quality), color=ORANGE, fontsize=8)
    axes.set(xlabel="median seconds of an answer", ylabel="right answers", ylim=(0, 1))
    axes.grid(alpha=0.25)
    write_file(folder / "pareto.svg", render_svg(figure, salt="pareto"))


def show(best: Sequence[Outcome]) -> None:
    """Print the settings that no other trial beats."""
    table = Table("trial", "right", "median s", "settings", title="Not beaten in both")
    for one in best:
        table.add_row(str(one.number), f"{one.quality:.1%}", f"{one.seconds:.2f}", json.dumps(one.settings))
    console.print(table)


if __name__ == "__main__":
    run_app("sweep", main)
