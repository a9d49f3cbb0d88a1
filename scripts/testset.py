"""Write a test set from a store's own documents, by a local model; and, with raft=true, chats to train a reader on.

    python scripts/testset.py store=NAME n=100 writer.url=http://127.0.0.1:8001/v1
    python scripts/testset.py store=NAME raft=true questions=FILE

Writes reports/testset-NAME/: questions.jsonl (yours to edit; evaluate.py and verdict.py read it), drafts.jsonl (every
draft, and why some were refused) and, with raft=true, raft_train.jsonl and raft_valid.jsonl, laid out as the server
lays out a prompt and checked as training checks its data. A stopped run goes on. Keys stand in conf/testset.yaml.
"""

from core.entry import begin_program

begin_program()

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig
from rich.console import Console

from core.config import PathsConfig, load_config, run_app
from core.control_tokens import disarm_for_any_model
from core.errors import ConfigError, Conflict, InputError
from core.layout import DataDir, check_name, sha256_file, write_file
from core.logs import configure_logging
from core.next_command import write_next_command
from core.training_file import check_file
from evaluation.questions import read_questions
from evaluation.raft import Example, Recipe, WithoutGold, make_examples, split_examples
from evaluation.structured import KEY_VARIABLE, Asking, StructuredModel, choose_model, find_asking_faults, list_served
from evaluation.testset import LABELS, Draft, Plan, Writing, count_refusals, share_out
from retrieval.config import EmbedderConfig, SearchConfig
from retrieval.database import open_database
from retrieval.searcher import Hit, Searcher
from retrieval.store import Passage, find_store, read_chunks, read_passages
from scripts.verdict_plan import read_text
from serve.answering import INSTRUCTIONS
from serve.inquiry import Chat
from serve.progress import CountProgress, say
from serve.prompting import build_prompt, disarm_chat, format_passage

QUESTIONS, DRAFTS, RAFT_TRAIN, RAFT_VALID = "questions.jsonl", "drafts.jsonl", "raft_train.jsonl", "raft_valid.jsonl"
WRITTEN = ".written"
"""Holds the hash of questions.jsonl as it was written: a file that a person has edited is never overwritten."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class WriterConfig:
    """Who writes the questions.

    Attributes:
        url: Base URL of an OpenAI-compatible server, with /v1; its key comes from LOAM_JUDGE_API_KEY.
        model: Its model; null: the only one that it serves.
        max_tokens: Most tokens of one answer.
        temperature: 0 to 2.
        timeout_s: Longest wait for one answer.
        retries: How often an unusable answer is asked for again.
        concurrency: Requests at the same time.
    """

    url: str = "http://127.0.0.1:8001/v1"
    model: str | None = None
    max_tokens: int = 512
    temperature: float = 0.7
    timeout_s: float = 300.0
    retries: int = 2
    concurrency: int = 4

    def __post_init__(self) -> None:
        """Check every range."""
        faults = find_asking_faults("writer", self.to_asking())
        if not self.url.startswith(("http://", "https://")):
            faults.insert(0, f"writer.url: wanted http://HOST:PORT/v1, found {self.url!r}")
        if faults:
            raise ConfigError("; ".join(faults))

    def to_asking(self) -> Asking:
        """Return how the writer is asked."""
        return Asking(self.max_tokens, self.temperature, self.timeout_s, self.retries, self.concurrency)


@dataclass(slots=True)
class WritingConfig:
    """What scripts/testset.py can be told.

    Attributes:
        store: Name of the store that the questions are about.
        n: How many questions.
        name: Folder under reports/; null: `testset-` and the store.
        shares: Weights of fact, multi-hop and unanswerable questions.
        exclude: File of questions that must not be asked again, nor nearly.
        seed: Of the choice of chunks, and of RAFT's.
        raft: Whether to make training chats.
        questions: File of questions to make training chats from; null: those that are written now.
        instructions: File with the system message of the training chats, the same as of the assistant that is trained
            for; null: the server's own.
        distractors: Passages in each training chat that do not answer; best one less than the assistant reads (its k).
        gold_share: Share of the training chats that have the passages that answer.
        without_gold: What is learned in the others: decline, or answer by heart.
        decline: The sentence to decline with.
        valid_share: Share of the training chats that is held out.
        paths: Where the data directory is.
        embedder: The embedding model of the store.
        search: How chunks are found.
        writer: Who writes the questions.
    """

    store: str = MISSING
    n: int = 100
    name: str | None = None
    shares: dict[str, float] = field(default_factory=lambda: {"fact": 0.6, "multi-hop": 0.2, "unanswerable": 0.2})
    exclude: str | None = None
    seed: int = 0
    raft: bool = False
    questions: str | None = None
    instructions: str | None = None
    distractors: int = 3
    gold_share: float = 0.8
    without_gold: WithoutGold = WithoutGold.decline
    decline: str = "The documents do not say."
    valid_share: float = 0.1
    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    writer: WriterConfig = field(default_factory=WriterConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        is_shared = set(self.shares) <= set(LABELS) and all(share >= 0 for share in self.shares.values())
        is_shared = is_shared and sum(self.shares.values()) > 0
        faults = [
            f"{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("n", self.n >= 1, "at least 1", self.n),
                ("shares", is_shared, f"weights of {', '.join(LABELS)}, not all 0", dict(self.shares)),
                ("distractors", 0 <= self.distractors <= 20, "0 to 20", self.distractors),
                ("gold_share", 0 <= self.gold_share <= 1, "0 to 1", self.gold_share),
                ("valid_share", 0 <= self.valid_share <= 0.5, "0 to 0.5", self.valid_share),
                ("decline", bool(self.decline.strip()), "a sentence", self.decline),
                ("questions", self.raft or self.questions is None, "raft=true beside it", self.questions),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults))


def find_writer(config: WriterConfig) -> str:
    """Return the writer's name, asked of its server.

    Raises:
        EngineUnavailable: It does not answer.
        ModelNotFound: It does not serve that model.
    """
    served = asyncio.run(list_served(config.url, os.environ.get(KEY_VARIABLE, "none")))
    return choose_model(served, config.model, config.url, "writer.model")


def read_store(data: DataDir, name: str) -> list[Passage]:
    """Return every chunk of a store.

    Raises:
        NotFound: There is no such store.
    """
    engine = open_database(data.database)
    try:
        _, rows = read_chunks(engine, find_store(engine, name))
        return list(read_passages(engine, [row.id for row in rows]).values())
    finally:
        engine.dispose()


async def write_drafts(config: WritingConfig, model: str, searcher: Searcher, path: Path) -> list[Draft]:
    """Let the writer write.

    Raises:
        EngineUnavailable: It went away; what was written is saved.
    """
    passages = read_store(DataDir(Path(config.paths.data_dir)), config.store)
    if not passages:
        raise InputError(f"store: wanted documents in {config.store}, found none. Ingest some first.", param="store")
    plan = Plan(share_out(config.n, config.shares), config.seed)

    def find(text: str, count: int) -> Sequence[Hit]:
        return searcher.search([config.store], text, count).hits

    progress = CountProgress(f"writing      {model}", config.n)
    async with StructuredModel(config.writer.url, model, config.writer.to_asking()) as writer:
        writing = Writing(writer, passages, find, searcher.embed_texts, plan)
        if config.exclude:
            writing.exclude([question.question for question in read_questions(Path(config.exclude))])
        return await writing.write(path, lambda draft: progress.advance() if draft.row else None)


def write_questions(drafts: Sequence[Draft], path: Path, plan: dict[str, int]) -> int:
    """Write what was kept as a file that a person can edit; returns how many.

    Raises:
        Conflict: The file was edited since it was written.
        InputError: Nothing was kept.
    """
    rows = [draft.row for draft in drafts if draft.row is not None]
    for label, wanted in plan.items():
        kept = sum(row["kind"] == label for row in rows)
        if kept < wanted:
            say(f"{label}: {kept} of {wanted} questions; the rest was refused, or the store has no more chunks")
    if not rows:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in count_refusals(drafts)[:3])
        raise InputError(f"wanted questions, found none that can be used ({reasons}). Take a larger writer.")
    mark = path.with_name(WRITTEN)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.exists() and (not mark.exists() or mark.read_text() != sha256_file(path)):
        raise Conflict(f"{path}: it was edited since it was written, and stays. Give another name.", param="name")
    write_file(path, content)
    write_file(mark, sha256_file(path))
    return len(rows)


def to_chat(example: Example, instructions: str) -> dict[str, Any]:
    """Return an example in OpenAI's chat format, its prompt as an assistant of the server has it.

    Nothing but the instructions may hold control tokens: a document that does would end its message in the training.
    """
    disarm = disarm_for_any_model
    chat = disarm_chat(Chat(example.question.question, [], ""), disarm)
    messages = build_prompt(instructions, chat, [disarm(format_passage(passage)) for passage in example.passages], [])
    return {"messages": [*messages, {"role": "assistant", "content": disarm(example.answer)}]}


def write_raft(
    config: WritingConfig, searcher: Searcher, questions: Path, folder: Path, instructions: str
) -> list[Path]:
    """Write and check training chats; returns the files.

    Raises:
        InputError: No question can be made a chat of.
        TrainingDataError: What was written is no training data.
    """
    recipe = Recipe(config.distractors, config.gold_share, config.without_gold, config.decline, config.seed)

    def find(text: str, count: int) -> Sequence[Hit]:
        return searcher.search([config.store], text, count).hits

    examples, left_out = make_examples(read_questions(questions), find, recipe)
    for sentence in left_out:
        say(f"left out     {sentence}")
    if not examples:
        raise InputError(f"{questions}: wanted questions that the store answers, found none.", param="questions")
    train, valid = split_examples(examples, config.valid_share)
    paths = []
    for part, name in ((train, RAFT_TRAIN), (valid, RAFT_VALID)):
        if part:
            chats = [to_chat(example, instructions) for example in part]
            write_file(folder / name, "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats))
            checked = check_file(folder / name)
            say(f"checked      {folder / name}: {checked.rows} chats")
            paths.append(folder / name)
    with_gold = sum(example.has_gold for example in examples)
    say(f"made         {len(examples)} chats, {with_gold} with the passages that answer, {len(left_out)} left out")
    return paths


def main(composed: DictConfig) -> None:
    """Write the questions, or take a file of them, and make chats where they are wanted."""
    configure_logging(level="WARNING")
    config = load_config(composed, WritingConfig)
    data = DataDir(Path(config.paths.data_dir))
    name = check_name(config.name or f"testset-{config.store}", "name")
    folder = data.reports / name
    questions = Path(config.questions) if config.questions else folder / QUESTIONS
    instructions = read_text(config.instructions, "instructions") or INSTRUCTIONS
    model = None if config.questions else find_writer(config.writer)
    searcher = Searcher(data, config.embedder, config.search)
    try:
        if model is not None:
            drafts = asyncio.run(write_drafts(config, model, searcher, folder / DRAFTS))
            count = write_questions(drafts, questions, share_out(config.n, config.shares))
            refused = sum(one.row is None for one in drafts)
            console.print(f"wrote {count} questions to {questions}; {refused} drafts refused:")
            for reason, times in count_refusals(drafts):
                console.print(f"  {times:4}  {reason}", markup=False)
        paths = write_raft(config, searcher, questions, folder, instructions) if config.raft else []
    finally:
        searcher.close()
    if paths:
        words = [f"{key}={path}" for key, path in zip(("data.train", "data.valid"), paths, strict=False)]
        step = write_next_command("train/run.py", *words, "run_id=raft", data_dir=config.paths.data_dir)
        console.print("These questions are now training data: test by others (exclude=FILE writes others).")
    else:
        words = [f"questions={questions}", "model=NAME", "judge=none"]
        command = write_next_command("scripts/evaluate.py", *words, data_dir=config.paths.data_dir)
        step = f"edit {questions}, then: {command}"
    console.print(f"next: {step}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run_app("testset", main)
