"""Evaluate a served model or assistant on a file of questions, through its HTTP endpoint.

    python scripts/evaluate.py questions=Q.jsonl model=NAME url=http://127.0.0.1:8000/v1 judge=none
    python scripts/evaluate.py questions=Q.jsonl model=NAME judge.url=http://127.0.0.1:8001/v1 at_least='{success: 0.8}'

Asks, scores, lets a local judge say RAGAS's four metrics, compares with an earlier run, and writes reports/NAME/:
answers.jsonl and judgements.jsonl (all that the figures come from), report.html, report.json, scores.csv. A stopped
run goes on. Exit code 20: a limit is not kept, or the run is worse for certain. Keys stand in conf/evaluate.yaml.
"""

from core.entry import begin_program

begin_program()

import asyncio
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, NotFound, describe_os_error
from core.layout import DataDir, check_name, sha256_file, write_file
from core.logs import configure_logging
from evaluation.abstention import ABSTENTIONS
from evaluation.answers import Arm, AskConfig, ask_all, read_answers
from evaluation.calibration import (
    Agreement,
    Labelled,
    find_judge_doubts,
    make_controls,
    measure_agreement,
    read_labels,
)
from evaluation.doubts import find_doubts
from evaluation.judge import EmbedderEndpoint, JudgeConfig
from evaluation.judgements import Judgement, make_samples, summarize_judgements
from evaluation.metrics import Scored, score_all, summarize
from evaluation.questions import Question, read_questions, spread
from evaluation.report import write_report
from evaluation.scorecard import (
    QUALITY,
    Card,
    check_limits,
    compare_runs,
    find_misses,
    is_worse,
    lay_out,
    measure_figures,
    measure_success,
    to_table,
    to_values,
)
from evaluation.searches import SearchQuality, measure_searches, search_all
from evaluation.structured import KEY_VARIABLE, StructuredModel, choose_model, find_base, list_served
from serve.progress import CountProgress, say

LIMITS_EXIT_CODE = 20
ANSWERS, JUDGEMENTS, SEARCHES = "answers.jsonl", "judgements.jsonl", "searches.jsonl"

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class EvaluateConfig:
    """What scripts/evaluate.py can be told.

    Attributes:
        questions: File of questions, one JSON object a line.
        served_model: What the requests' `model` holds: a base model, adapter, run id or assistant.
            `model=NAME` is taken for it.
        url: The endpoint, with /v1; its key comes from LOAM_API_KEY.
        name: Folder under reports/; null: `evaluate-` and the model.
        limit: Take so many questions, spread evenly over the file; null takes all.
        instructions: File with a system message to send before each question; null: none.
        abstentions: Further patterns of declining, as regular expressions.
        store: Store to search by itself with every question, ten passages deep; null: none.
        compare: Name of an earlier report over the same questions.
        fail_if_worse: End with exit code 20 when success fell against `compare`, with its whole interval below 0.
        at_least: Least value by metric, as `{success: 0.8}`; below it the exit code is 20. null: none.
        at_most: Largest value by metric; above it the exit code is 20. null: none.
        level: Of confidence intervals.
        seed: Of resampling.
        paths: Where the data directory is.
        ask: How the endpoint is asked.
        judge: Who judges.
    """

    questions: str = MISSING
    served_model: str = MISSING
    url: str = "http://127.0.0.1:8000/v1"
    name: str | None = None
    limit: int | None = None
    instructions: str | None = None
    abstentions: list[str] = field(default_factory=list)
    store: str | None = None
    compare: str | None = None
    fail_if_worse: bool = False
    at_least: dict[str, float] | None = None
    at_most: dict[str, float] | None = None
    level: float = 0.95
    seed: int = 0
    paths: PathsConfig = field(default_factory=PathsConfig)
    ask: AskConfig = field(default_factory=AskConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        faults = []
        if self.limit is not None and self.limit < 1:
            faults.append(f"limit: wanted at least 1, found {self.limit}")
        if not 0.5 <= self.level < 1:
            faults.append(f"level: wanted 0.5 to below 1, found {self.level}")
        if self.fail_if_worse and self.compare is None:
            faults.append("fail_if_worse: wanted a run to compare with; give compare=NAME")
        for pattern in self.abstentions:
            try:
                re.compile(pattern)
            except re.error as error:
                faults.append(f"abstentions: wanted regular expressions, found {pattern!r} ({error})")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Judging:
    """A judge that was found, and what it is told.

    Attributes:
        url: Its server.
        model: Its name there.
        base: Its base model.
        judged_base: Base model of what is evaluated.
        embedder: Where texts are embedded; None where nothing embeds.
        labels: What people have said.
    """

    url: str
    model: str
    base: str
    judged_base: str
    embedder: EmbedderEndpoint | None
    labels: Sequence[Labelled]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of the answers, and how it agrees with what is known."""

    judgements: list[Judgement]
    agreements: list[Agreement]
    usage: dict[str, int]


def find_judging(config: EvaluateConfig) -> Judging | None:
    """Find judge, embedder and labels, before anything is asked; None without a judge.

    Raises:
        EngineUnavailable: The judge's server, or the endpoint, does not answer.
        ModelNotFound: The judge is not served there.
        InputError: The labels cannot be read.
    """
    judge = config.judge
    if judge.url is None:
        return None
    labels = read_labels(Path(judge.labels)) if judge.labels else []
    served = asyncio.run(list_served(judge.url, os.environ.get(KEY_VARIABLE, "none")))
    model = choose_model(served, judge.model, judge.url, "judge.model")
    there = asyncio.run(list_served(config.url, os.environ.get("LOAM_API_KEY", "none")))
    embedder = judge.embedder or next((one.name for one in there if one.kind == "embedder"), None)
    endpoint = EmbedderEndpoint(config.url, embedder) if embedder else None
    if judge.embedder_url and embedder:
        endpoint = EmbedderEndpoint(judge.embedder_url, embedder, KEY_VARIABLE)
    return Judging(judge.url, model, find_base(served, model), find_base(there, config.served_model), endpoint, labels)


async def judge_answers(config: JudgeConfig, judging: Judging, scored: Sequence[Scored], path: Path) -> Judged:
    """Let the judge say what it thinks of known pairs and of the answers.

    Raises:
        EngineUnavailable: The judge went away; what was judged is saved.
    """
    from evaluation.ragas_scores import judge_samples  # RAGAS takes seconds to import

    known = [*judging.labels, *make_controls(scored, config.controls)]
    samples = make_samples(spread(scored, config.limit))
    wanted = sum(sample.fits(metric) for sample in samples for metric in config.metrics)
    progress = CountProgress(f"judging      {judging.model}", wanted + sum(len(one.labels) for one in known))
    async with StructuredModel(judging.url, judging.model, config.to_asking()) as judge:
        said = []
        for metric in dict.fromkeys(metric for one in known for metric in one.labels):
            asked = [one.sample for one in known if metric in one.labels]
            said += await judge_samples(asked, [metric], judge, judging.embedder, path, lambda _: progress.advance())
        judgements = await judge_samples(
            samples, config.metrics, judge, judging.embedder, path, lambda _: progress.advance()
        )
        return Judged(judgements, measure_agreement(known, said), dataclasses.asdict(judge.usage))


def read_other(data: DataDir, name: str, questions: Sequence[Question], abstentions: Sequence[str]) -> list[Scored]:
    """Return the answers of another report, scored against the same questions.

    Raises:
        NotFound: There is no such report.
        ConfigError: It holds several arms, or no answer to one of these questions.
    """
    path = data.reports / check_name(name, "compare") / ANSWERS
    if not path.is_file():
        there = ", ".join(sorted(found.parent.name for found in data.reports.glob(f"*/{ANSWERS}"))) or "none"
        raise NotFound(f"compare: wanted the report {name} in {data.reports}, found {there}.", param="compare")
    texts = {question.id: question.question for question in questions}
    answers = [answer for answer in read_answers(path) if answer.question_id in texts]
    same = [answer for answer in answers if answer.question == texts[answer.question_id]]
    if not same:
        raise ConfigError(f"compare: wanted answers to these questions in {path}, found none.", param="compare")
    if len(same) < len(answers):
        say(f"left out     {len(answers) - len(same)} questions that were worded otherwise in {name}")
    scored = score_all(questions, same, abstentions)
    if len({one.answer.arm for one in scored}) > 1:
        raise ConfigError(f"compare: wanted a report of evaluate.py, found several arms in {path}.", param="compare")
    return scored


def search_store(config: EvaluateConfig, questions: Sequence[Question], path: Path) -> SearchQuality:
    """Search the store with every question, and save what was found.

    Raises:
        NotFound: The endpoint has no such store.
        EngineUnavailable: It cannot be reached.
    """
    store = config.store or ""
    progress = CountProgress(f"searching    {store}", len(questions))
    searches = search_all(questions, store, config.ask, lambda _: progress.advance())
    lines = [json.dumps(dataclasses.asdict(search), ensure_ascii=False) for search in searches]
    write_file(path, "".join(f"{line}\n" for line in lines))
    return measure_searches(questions, searches, store)


def read_instructions(path: str | None) -> str | None:
    """Return the text of a file with a system message."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise describe_os_error(error, f"read instructions from {path}") from error


def make_card(
    config: EvaluateConfig,
    name: str,
    scored: Sequence[Scored],
    judging: Judging | None,
    judged: Judged | None,
    other: Sequence[Scored] | None,
    searched: SearchQuality | None,
) -> Card:
    """Compute everything that is told."""
    judgements = judged.judgements if judged else []
    means = summarize_judgements(judgements)
    figures = measure_figures(scored, means, searched)
    doubts = find_doubts(scored)
    if judging and judged:
        bases = {config.served_model: judging.judged_base}
        doubts += find_judge_doubts(judged.agreements, judging.model, judging.base, bases)
    compared = [] if other is None else compare_runs(scored, other, seed=config.seed, level=config.level)
    misses = find_misses(figures, config.at_least or {}, config.at_most or {})
    if config.fail_if_worse and is_worse(compared):
        misses.append(f"success: worse than in {config.compare}, and the interval of the difference lies below 0")
    questions = Path(config.questions)
    return Card(
        name=name,
        settings={
            "model": config.served_model,
            "questions": questions.name,
            "questions_sha256": sha256_file(questions),
            "limit": config.limit,
            "max_tokens": config.ask.max_tokens,
            "temperature": config.ask.temperature,
            "concurrency": config.ask.concurrency,
            "level": config.level,
            "seed": config.seed,
        },
        scored=scored,
        summaries=summarize(scored),
        success=measure_success(scored, seed=config.seed, level=config.level),
        figures=figures,
        judged=means,
        judgements=judgements,
        agreements=judged.agreements if judged else (),
        judge={"model": judging.model, "base": judging.base, "usage": judged.usage} if judging and judged else {},
        searched=searched,
        doubts=doubts,
        compared_with=config.compare,
        compared=compared,
        misses=misses,
    )


def show(card: Card) -> None:
    """Print what matters."""
    table = Table("metric", "mean", "n", "without", title=f"{card.name}: {card.settings['model']}")
    for summary in card.summaries:
        if summary.kind == "all" and summary.n and summary.metric in (*QUALITY, "ttft_s", "latency_s", "failed"):
            table.add_row(summary.metric, f"{summary.mean:.3f}", str(summary.n), str(summary.missing))
    for mean in card.judged:
        value = "–" if mean.mean is None else f"{mean.mean:.3f}"
        table.add_row(f"{mean.metric} (judge)", value, str(mean.n), f"{mean.faults} faults")
    console.print(table)
    success = card.success
    console.print(f"success {success.mean:.1%} ({success.low:.1%} to {success.high:.1%}), n = {success.n}")
    for one in card.agreements:
        console.print(
            f"judge on {one.source}s, {one.metric}: agreement {_percent(one.agreement)}, yeses kept "
            f"{_percent(one.yes_kept)} of {one.yeses}, noes kept {_percent(one.noes_kept)} of {one.noes}, "
            f"{one.faults} faults"
        )
    for compared in card.compared:
        change = compared.comparison
        console.print(
            f"{compared.metric}: {compared.other_mean:.3f} in {card.compared_with}, {compared.mean:.3f} now: "
            f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f}), n = {change.n}"
        )
    for sentence in card.doubts:
        console.print(f"[yellow]doubt: {escape(sentence)}[/yellow]")
    for sentence in card.misses:
        console.print(f"[red]limit not kept: {escape(sentence)}[/red]")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def main(composed: DictConfig) -> None:
    """Check, ask, score, judge, compare, write and show."""
    configure_logging(level="WARNING")
    config = load_config(composed, EvaluateConfig)
    check_limits(config.at_least or {}, config.at_most or {})
    data = DataDir(Path(config.paths.data_dir))
    name = check_name(config.name or f"evaluate-{re.sub(r'[^A-Za-z0-9._-]', '-', config.served_model)}", "name")
    folder = data.reports / name
    questions = spread(read_questions(Path(config.questions)), config.limit)
    abstentions = (*ABSTENTIONS, *config.abstentions)
    other = read_other(data, config.compare, questions, abstentions) if config.compare else None
    arm = Arm(config.served_model, config.served_model, read_instructions(config.instructions))
    judging = find_judging(config)
    searched = search_store(config, questions, folder / SEARCHES) if config.store else None
    progress = CountProgress(f"asking       {config.served_model}", len(questions))
    answers = ask_all(questions, [arm], config.ask, folder / ANSWERS, lambda _: progress.advance())
    scored = score_all(questions, answers, abstentions)
    judged = asyncio.run(judge_answers(config.judge, judging, scored, folder / JUDGEMENTS)) if judging else None
    card = make_card(config, name, scored, judging, judged, other, searched)
    write_report(folder, f"Evaluation of {config.served_model}", lay_out(card), to_values(card), to_table(card))
    show(card)
    kept = [word for word in sys.argv[1:] if not word.startswith(("name=", "compare="))]
    following = shlex.join(["python", "scripts/evaluate.py", *kept, f"name={name}-2", f"compare={name}"])
    console.print(
        f"wrote {folder / 'report.html'}\nnext: change something, and compare: {following}",
        soft_wrap=True,
        markup=False,
    )
    if card.misses:
        sys.exit(LIMITS_EXIT_CODE)


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Return arguments with `served_model=` for `model=`, which Hydra would take for a choice from conf/model/."""
    return [f"served_{argument}" if argument.startswith("model=") else argument for argument in arguments]


if __name__ == "__main__":
    sys.argv = spell_out(sys.argv)
    run_app("evaluate", main)
