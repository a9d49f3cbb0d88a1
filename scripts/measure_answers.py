"""Measure a served model's answers from documents: python scripts/measure_answers.py --model NAME [--sample 100].

Against a running gateway, with the stock client only: uploads a labelled collection's passages into a vector store,
asks questions that they answer and questions that were written against them and that they do not answer, each with
file_search and without a threshold, and removes everything again. Counts without a judge: an answer is right where it
holds an accepted answer, a refusal where it says that the documents are silent; a citation is right where its passage
holds an accepted answer. What a `score_threshold` would have declined is told by the scores of what was found, so
that one run gives the whole trade-off. Does not know how the gateway works inside.
"""

from core.entry import begin_program

begin_program()

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai

from core.config import run_command
from core.layout import write_json
from core.logs import configure_logging
from evaluation.matching import holds_text
from retrieval.beir import CorpusPassage, read_collection
from scripts.calibrate_answers import DATA, K, Question, read_questions, spread
from serve.citing import REFUSAL

BATCH = 500
"""Files of one batch."""
THRESHOLDS = (0.0, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a question.

    Attributes:
        relevance: Best score among what was found, 0 to 1.
        is_found: Whether a passage that was found holds an accepted answer.
        is_refusal: Whether the answer says that the documents are silent.
        is_right: Whether it holds an accepted answer.
        citations: Marks.
        right_citations: Those whose passage holds an accepted answer.
    """

    relevance: float
    is_found: bool
    is_refusal: bool
    is_right: bool
    citations: int
    right_citations: int


def main() -> None:
    """Upload, ask, print and draw."""
    configure_logging(level="WARNING")
    arguments = parse_arguments()
    collection = read_collection(arguments.dataset)
    answerable, unanswerable = read_questions(arguments.dataset, collection)
    client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, timeout=600)
    with uploaded_store(client, collection.passages) as store:
        ask_one = partial(ask, client, arguments.model, store)
        mine = ask_all(ask_one, answerable[: arguments.sample], arguments.concurrency)
        theirs = ask_all(ask_one, spread(unanswerable, arguments.sample), arguments.concurrency)
    print(render(mine, theirs))
    if arguments.save is not None:
        rows = {"answerable": [asdict(one) for one in mine], "unanswerable": [asdict(one) for one in theirs]}
        write_json(arguments.save, rows)
    if arguments.plot is not None:
        draw(mine, theirs, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", nargs="?", type=Path, default=DATA / "squad_dev_a", metavar="DATASET")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the gateway")
    parser.add_argument("--key", default="none", help="where the gateway wants one")
    parser.add_argument("--model", required=True, help="a base model, an adapter or an assistant")
    parser.add_argument("--sample", type=int, default=100, help="questions of each side")
    parser.add_argument("--concurrency", type=int, default=4, help="questions at the same time")
    parser.add_argument(
        "--save", type=Path, metavar="PATH", help="where to write what became of each question, as JSON"
    )
    parser.add_argument("--plot", type=Path, metavar="PATH", help="where to draw the trade-off")
    return parser.parse_args()


@contextmanager
def uploaded_store(client: openai.OpenAI, passages: Sequence[CorpusPassage]) -> Iterator[str]:
    """Yield a vector store that holds the passages, and remove it and its files afterwards."""
    store = client.vector_stores.create(name="measure_answers").id
    files: list[str] = []
    try:
        for number, passage in enumerate(passages):
            name, words = f"{number:07d}.txt", f"{passage.title}\n\n{passage.text}\n"
            files.append(client.files.create(file=(name, words.encode()), purpose="assistants").id)
        for start in range(0, len(files), BATCH):
            batch = client.vector_stores.file_batches.create_and_poll(store, file_ids=files[start : start + BATCH])
            print(f"{min(start + BATCH, len(files))} of {len(files)} passages, {batch.file_counts.failed} failed")
        yield store
    finally:
        client.vector_stores.delete(store)
        for file in files:
            client.files.delete(file)


def ask_all(ask_one: Callable[[Question], Answer], questions: Sequence[Question], concurrency: int) -> list[Answer]:
    """Ask each question by itself, some at the same time; say now and then how many are done."""
    answers = []
    with ThreadPoolExecutor(concurrency) as pool:
        for number, answer in enumerate(pool.map(ask_one, questions), start=1):
            answers.append(answer)
            if number % 20 == 0:
                print(f"{number} of {len(questions)} questions", flush=True)
    return answers


def ask(client: openai.OpenAI, model: str, store: str, question: Question) -> Answer:
    """Ask one question with file_search."""
    tool: Any = {
        "type": "file_search",
        "vector_store_ids": [store],
        "max_num_results": K,
        "ranking_options": {"score_threshold": 0},
    }
    response = client.responses.create(
        model=model, input=question.text, tools=[tool], include=["file_search_call.results"], max_output_tokens=64,
        store=False,
    )  # fmt: skip
    found = [result for item in response.output if item.type == "file_search_call" for result in item.results or ()]
    texts = [result.text or "" for result in found]
    cited = [texts[number - 1] for number in read_marks(response)]
    words = response.output_text
    return Answer(
        relevance=max((result.score or 0.0 for result in found), default=0.0),
        is_found=any(holds(text, question.answers) for text in texts),
        is_refusal=REFUSAL.search(words) is not None,
        is_right=holds(words, question.answers),
        citations=len(cited),
        right_citations=sum(holds(text, question.answers) for text in cited),
    )


def read_marks(response: Any) -> Iterator[int]:
    """Yield the number of the passage behind each citation."""
    for item in response.output:
        for content in item.content if item.type == "message" else ():
            for annotation in content.annotations:
                yield int(content.text[annotation.index + 1 :].partition("]")[0])


def holds(text: str, answers: Sequence[str]) -> bool:
    """Tell whether a text holds one of the accepted answers."""
    return any(holds_text(text, answer) for answer in answers)


def decline(answers: Sequence[Answer], threshold: float) -> float:
    """Return the share of questions that are not answered: nothing was relevant enough, or the model refused."""
    return float(np.mean([one.relevance < threshold or one.is_refusal for one in answers]))


def render(answerable: Sequence[Answer], unanswerable: Sequence[Answer]) -> str:
    """Return the figures as Markdown."""
    cited = sum(one.citations for one in answerable)
    right = sum(one.right_citations for one in answerable)
    answered = [one for one in answerable if one.is_right]
    lines = [
        f"answerable: {len(answerable)}",
        f"- passage found: {share([one.is_found for one in answerable])}",
        f"- right: {share([one.is_right for one in answerable])}",
        f"- refused: {share([one.is_refusal for one in answerable])}",
        f"- citations: {cited}, of them to a passage that holds the answer: {right}",
        f"- right answers with such a citation: {share([one.right_citations > 0 for one in answered])}",
        f"unanswerable: {len(unanswerable)}",
        f"- refused: {share([one.is_refusal for one in unanswerable])}",
        f"- with a citation: {share([one.citations > 0 for one in unanswerable])}",
        "",
        "| score_threshold | wrongly declined | wrongly answered |",
        "|---|---|---|",
    ]
    for threshold in THRESHOLDS:
        declined, passed = decline(answerable, threshold), 1 - decline(unanswerable, threshold)
        lines.append(f"| {threshold} | {declined:.2f} | {passed:.2f} |")
    return "\n".join(lines)


def share(values: Sequence[bool]) -> str:
    """Return a share in percent."""
    return f"{100 * float(np.mean(values)):.0f}%" if values else "none"


def draw(answerable: Sequence[Answer], unanswerable: Sequence[Answer], path: Path) -> None:
    """Draw what silence costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 1, 101)
    declined = [decline(answerable, threshold) for threshold in thresholds]
    passed = [1 - decline(unanswerable, threshold) for threshold in thresholds]
    axes.plot(declined, passed, marker=".")
    for threshold in THRESHOLDS:
        where = (decline(answerable, threshold), 1 - decline(unanswerable, threshold))
        axes.annotate(f"{threshold:g}", where)
    axes.set(title="Answers, by score_threshold", xlabel="wrongly declined", ylabel="wrongly answered")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    run_command(main)
