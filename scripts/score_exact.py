"""Score a run by exact match through the served vLLM: base, adapter and, when asked, every checkpoint on the way.

    python scripts/score_exact.py run=ID questions=FILE prompt_column=text completion_column=label [checkpoints=true]
    python scripts/score_exact.py run=ID questions=chats.jsonl [limit=100]

An adapter is judged as users meet it: one vLLM is started as serving starts it, and every question goes through
/v1/chat/completions, greedy. Prints a table and writes reports/exact-ID/: scores.json, answers.jsonl and accuracy.png
(accuracy against minutes of training). Keys stand in conf/score_exact.yaml. Does not know how the adapter was trained.
"""

from core.entry import begin_program

begin_program()

import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, InputError, NotFound
from core.layout import DataDir, write_file, write_json
from core.logs import configure_logging
from core.next_command import write_next_command
from evaluation.questions import spread
from serve.engine import Engine
from serve.engine_command import EngineConfig
from serve.hardware import fill_engine_config
from serve.model_server import Adapter
from serve.preflight import fit_rank
from serve.progress import CountProgress, say
from serve.trial import ask, run_engine
from train.checkpoint import is_complete, step_of
from train.config import resolve_path
from train.folder import read_steps

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class ScoreConfig:
    """What scripts/score_exact.py can be told.

    Attributes:
        run: Id of the run to score, finished or not.
        questions: JSONL of questions with their one right answer: two columns, or chats that end with it.
        prompt_column: Key of the question in each row; None: rows are chats (`messages`).
        completion_column: Key of the right answer.
        base: Score the base model too.
        checkpoints: Score every whole checkpoint of the run too.
        limit: Take so many questions, spread evenly over the file; None takes all.
        paths: Where the data directory is.
        hardware: The profile of the machine; it has chosen `engine`.
        engine: vLLM, as in serving.
    """

    run: str = MISSING
    questions: str = MISSING
    prompt_column: str | None = None
    completion_column: str | None = None
    base: bool = True
    checkpoints: bool = False
    limit: int | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    hardware: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Check what one key alone cannot tell."""
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ConfigError("prompt_column: wanted both prompt_column and completion_column or neither, found one")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: wanted at least 1, found {self.limit}")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one right answer.

    Attributes:
        messages: What is asked, as a chat.
        expected: The right answer, spaces at its ends removed.
    """

    messages: list[dict[str, Any]]
    expected: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights to score.

    Attributes:
        name: In the table and in requests to the engine: the base's name, `adapter` or `checkpoint-<step>`.
        step: Optimizer steps behind them; 0 for the base.
        folder: An adapter's folder; None for the base.
    """

    name: str
    step: int
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Score:
    """How well one candidate answered.

    Attributes:
        model: The candidate's name.
        step: Optimizer steps behind it.
        training_minutes: Spent in those steps, evaluation and saving left out.
        elapsed_minutes: From the first step's start to the last one's end, everything in it (a pause too).
        exact: Share of the answers that are the right one to the letter, spaces at the ends aside.
        n: Questions.
    """

    model: str
    step: int
    training_minutes: float
    elapsed_minutes: float
    exact: float
    n: int


def read_questions(path: Path, prompt_column: str | None, completion_column: str | None) -> list[Question]:
    """Read questions from a JSONL file.

    Args:
        path: One JSON object a line.
        prompt_column: Key of the question, or None for chats that end with the right answer.
        completion_column: Key of the right answer.

    Raises:
        NotFound: There is no such file.
        InputError: Rows cannot be read; the lines are named.
    """
    if not path.is_file():
        raise NotFound(f"questions: wanted a file, found nothing at {path}. Check the path.", param="questions")
    questions, faulty = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        question = _read_question(line, prompt_column, completion_column)
        if question is None:
            faulty.append(number)
        else:
            questions.append(question)
    if faulty or not questions:
        wanted = f"the texts {prompt_column} and {completion_column}" if prompt_column else "messages"
        lines = f"lines {', '.join(map(str, faulty[:10]))} without" if faulty else "no row at all"
        raise InputError(f"{path}: wanted {wanted} in every row, found {lines}. Name the columns.", param="questions")
    return questions


def _read_question(line: str, prompt_column: str | None, completion_column: str | None) -> Question | None:
    """Return a line's question, or None where it holds none."""
    try:
        row = json.loads(line)
        if prompt_column is not None:
            messages, expected = [{"role": "user", "content": row[prompt_column]}], row[completion_column]
        else:
            *messages, last = row["messages"]
            expected = last["content"]
    except (ValueError, LookupError, TypeError):
        return None
    texts = [expected, *(message.get("content") for message in messages)]
    is_whole = bool(messages) and all(isinstance(text, str) and text.strip() for text in texts)
    return Question(messages, expected.strip()) if is_whole else None


def find_candidates(run: Path, base: str, *, with_base: bool, with_checkpoints: bool) -> list[Candidate]:
    """Return what a run has to score: base, whole checkpoints in order, published adapter.

    Raises:
        NotFound: The run has neither an adapter nor, where they are asked for, a whole checkpoint.
    """
    candidates = []
    if with_checkpoints:
        folders = [path for path in (run / "checkpoints").glob("checkpoint-*") if is_complete(path)]
        candidates += [Candidate(path.name, step_of(path), path) for path in sorted(folders, key=step_of)]
    manifest = run / "adapter" / "manifest.json"
    if manifest.is_file():
        metrics = json.loads(manifest.read_text(encoding="utf-8"))["metrics"]
        step = int(metrics.get("best_step") or metrics.get("steps") or 0)
        candidates.append(Candidate("adapter", step, run / "adapter"))
    if not candidates:
        hint = "" if with_checkpoints else " Add checkpoints=true to score an unfinished run."
        raise NotFound(f"run: wanted an adapter or a whole checkpoint in {run}, found none.{hint}", param="run")
    return [*([Candidate(base, 0, None)] if with_base else []), *candidates]


@contextmanager
def stage_adapters(candidates: list[Candidate]) -> Iterator[list[Adapter]]:
    """Copy each adapter's two files into a private folder: a checkpoint holds more, which vLLM has no business with."""
    folder = Path(tempfile.mkdtemp(prefix="loam-adapters-"))
    try:
        adapters = []
        for candidate in candidates:
            if candidate.folder is not None:
                (folder / candidate.name).mkdir()
                for name in ADAPTER_FILES:
                    shutil.copyfile(candidate.folder / name, folder / candidate.name / name)
                adapters.append(Adapter(candidate.name, folder / candidate.name))
        yield adapters
    finally:
        shutil.rmtree(folder)


def read_rank(adapter: Path) -> int:
    """Return an adapter's LoRA rank."""
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def measure_minutes(run: Path, step: int) -> tuple[float, float]:
    """Return the minutes up to a step: spent in the steps alone, and elapsed with everything between them.

    Args:
        run: The run's folder; its events tell each step's tokens and tokens/s.
        step: The last step that counts; 0 for none.
    """
    steps = read_steps(run, step)
    if not steps or step == 0:
        return 0.0, 0.0
    tokens = [0.0, *(event["tokens"] for event in steps)]
    seconds = [
        (after - before) / event["tokens_per_s"]
        for event, before, after in zip(steps, tokens, tokens[1:], strict=False)
        if event["tokens_per_s"] > 0
    ]
    elapsed_s = steps[-1]["time"] - steps[0]["time"] + (seconds[0] if seconds else 0.0)
    return sum(seconds) / 60, elapsed_s / 60


def count_answer_tokens(questions: list[Question], tokenizer: Path) -> int:
    """Return the tokens of the longest right answer and its stop token: a longer answer is wrong anyway."""
    reader = Tokenizer.from_file(str(tokenizer))
    return 1 + max(len(reader.encode(question.expected, add_special_tokens=False).ids) for question in questions)


async def answer_all(
    engine: Engine, model: str, questions: list[Question], max_tokens: int, concurrency: int, progress: CountProgress
) -> list[str]:
    """Ask a model every question, greedy, several at a time.

    Args:
        engine: It runs.
        model: The base's or an adapter's name.
        questions: What is asked.
        max_tokens: Most tokens of an answer.
        concurrency: Requests at the same time.
        progress: Counts the answers.

    Returns:
        The answers in the order of the questions, spaces at their ends removed.
    """
    slots = asyncio.Semaphore(concurrency)

    async def answer(question: Question) -> str:
        body = {"model": model, "messages": question.messages, "temperature": 0, "max_tokens": max_tokens}
        async with slots:
            values = await ask(engine, "/v1/chat/completions", body)
        progress.advance()
        return str(values["choices"][0]["message"]["content"] or "").strip()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(question)) for question in questions]
    return [task.result() for task in tasks]


def score_answers(candidate: Candidate, run: Path, questions: list[Question], answers: list[str]) -> Score:
    """Return how many answers are the right one."""
    right = sum(answer == question.expected for question, answer in zip(questions, answers, strict=True))
    training, elapsed = measure_minutes(run, candidate.step)
    exact = round(right / len(questions), 4)
    return Score(candidate.name, candidate.step, round(training, 2), round(elapsed, 2), exact, len(questions))


def draw_accuracy(path: Path, scores: list[Score]) -> None:
    """Draw exact match against minutes of training as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([score.training_minutes for score in scores], [100 * score.exact for score in scores], "o-")
    axes.set(xlabel="minutes of training", ylabel="exact match, %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    figure.savefig(path, metadata={"Software": None})


def show(scores: list[Score], report: Path, run: str, data_dir: str) -> None:
    """Print the table, where it is kept, and what comes next."""
    table = Table("model", "step", "minutes in steps", "minutes elapsed", "exact match", "n")
    for score in scores:
        times = (f"{score.training_minutes:.1f}", f"{score.elapsed_minutes:.1f}")
        table.add_row(score.model, str(score.step), *times, f"{score.exact:.1%}", str(score.n))
    console.print(table)
    following = write_next_command("serve/run.py", f"adapters=[{run}]", data_dir=data_dir)
    console.print(f"wrote {report}\nnext: {following}", soft_wrap=True, markup=False)


async def score_all(
    config: ScoreConfig, run: Path, model: Path, candidates: list[Candidate], questions: list[Question]
) -> tuple[list[Score], list[dict[str, Any]]]:
    """Start vLLM with every candidate and ask them all.

    Returns:
        The scores in the candidates' order, and each question with every candidate's answer.
    """
    filled = fill_engine_config(config.engine)
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    max_tokens = count_answer_tokens(questions, model / "tokenizer.json")
    log = DataDir(Path(config.paths.data_dir)).root / "logs" / "vllm-score.log"
    scores: list[Score] = []
    rows: list[dict[str, Any]] = [{"messages": one.messages, "expected": one.expected} for one in questions]
    with stage_adapters(candidates) as adapters:
        rank = filled.max_lora_rank or fit_rank([read_rank(adapter.path) for adapter in adapters])
        filled = dataclasses.replace(filled, max_lora_rank=rank)
        async with run_engine(filled, model, adapters, saved["data"]["template_date"], log) as engine:
            for candidate in candidates:
                progress = CountProgress(f"asking       {candidate.name}", len(questions))
                concurrency = filled.max_num_seqs or 16
                answers = await answer_all(engine, candidate.name, questions, max_tokens, concurrency, progress)
                scores.append(score_answers(candidate, run, questions, answers))
                say(f"scored       {candidate.name}: {scores[-1].exact:.1%} of {len(questions)}")
                for row, answer in zip(rows, answers, strict=True):
                    row[candidate.name] = answer
    return scores, rows


def main(composed: DictConfig) -> None:
    """Check, ask, write and show."""
    configure_logging(level="WARNING")
    config = load_config(composed, ScoreConfig)
    data = DataDir(Path(config.paths.data_dir))
    run = data.run(config.run)
    if not (run / "config.yaml").is_file():
        raise NotFound(f"run: wanted a run in {run}, found none. See which there are: ls {data.runs}", param="run")
    model = data.model(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["name"])
    questions = read_questions(resolve_path(config.questions), config.prompt_column, config.completion_column)
    questions = spread(questions, config.limit)
    candidates = find_candidates(run, model.name, with_base=config.base, with_checkpoints=config.checkpoints)
    scores, rows = asyncio.run(score_all(config, run, model, candidates, questions))
    report = data.reports / f"exact-{config.run}"
    write_json(
        report / "scores.json",
        {"run": config.run, "questions": Path(config.questions).name, "scores": [asdict(score) for score in scores]},
    )
    write_file(report / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    draw_accuracy(report / "accuracy.png", scores)
    show(scores, report, config.run, config.paths.data_dir)


if __name__ == "__main__":
    run_app("score_exact", main)
