"""Walk through the API as an application would, on what `make demo` left: a job, a document, an evaluation.

    python scripts/journey.py [--data-dir data]

Starts the server and goes through it with the stock `openai` client: a fine-tuning job whose model must speak as it was
taught, an uploaded document that must be found, quoted and cited, and scripts/evaluate.py over a few of the example's
questions. Each step ends the program with one sentence where it does not hold. What it made is deleted again, but for
the run's folder and the report. For after an installation or an upgrade; the air-gap proof runs it in a closed room.
Knows nothing of how anything works: it reads what the endpoint answers.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from core.config import run_command
from core.errors import ContractError, EngineTimeout, LoamError, NotFound
from core.layout import DataDir, default_data_dir
from core.next_command import name_data_dir, quote_value
from scripts.demo import BASE_MODEL, EXAMPLE, MODES, PROJECT, RUN_ID, list_serve_options, run_stage
from scripts.server_process import run_server

STYLE = "Stock desk:"
TRAINED_ITEMS, ASKED_ITEM = 48, 60
JOB_TIMEOUT_S = 1800
POLL_S = 1.0
DOCUMENT = """# Warranty

The Brook 40 pump has a warranty of 26 months. The warranty starts on the day of delivery.

# Returns

A customer can return a product within 45 days of delivery. Opened products carry a restocking fee of 12%.
"""
QUESTION, FACT = "How many months of warranty does the Brook 40 pump have?", "26 months"
QUESTIONS = 6


def expect(is_so: bool, wanted: str, found: object) -> None:
    """Go on only where something holds.

    Raises:
        ContractError: It does not.
    """
    if not is_so:
        raise ContractError(f"wanted {wanted}, found {str(found)[:500]!r}. See data/logs/journey-serve.log.")


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"journey: {text}", file=sys.stderr, flush=True)


def write_chats() -> bytes:
    """Return chats whose answers all begin alike, as JSON lines: a style that a short job teaches."""
    pairs = [(f"What is item {n}?", f"{STYLE} Item {n} is on shelf {7 * n % 40}.") for n in range(TRAINED_ITEMS)]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    return "".join(json.dumps(chat) + "\n" for chat in chats).encode()


def train_by_job(client: openai.OpenAI) -> None:
    """Fine-tune by the API, and ask the model that came of it.

    Raises:
        ContractError: The job failed, or its model does not speak as it was taught.
        EngineTimeout: The job did not end in time.
    """
    training = client.files.create(file=("chats.jsonl", write_chats()), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 5}
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training.id,
        suffix="journey",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata={"lora_rank": "8"},
    )
    job = wait_for_job(client, job)
    expect(job.status == "succeeded", "a fine-tuning job that succeeds", job.error or job.status)
    name = job.fine_tuned_model or ""
    said, base = (ask(client, model, f"What is item {ASKED_ITEM}?") for model in (name, BASE_MODEL))
    expect(said.startswith(STYLE), f"an answer of {name} that begins with {STYLE!r}", said)
    expect(STYLE not in base, "an answer of the base model without what only the job taught", base)
    say(f"{name}, {job.trained_tokens} tokens trained, answers {said!r}")
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    for model in (name, *(one.fine_tuned_model_checkpoint for one in checkpoints)):
        client.models.delete(model)
    for file_id in job.result_files:
        client.files.delete(file_id)
    client.files.delete(training.id)


def wait_for_job(client: openai.OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Poll a job until it has ended, and tell its states."""
    deadline, state = time.monotonic() + JOB_TIMEOUT_S, ""
    while job.status not in {"succeeded", "failed", "cancelled"}:
        if time.monotonic() > deadline:
            raise EngineTimeout(f"wanted job {job.id} to end within {JOB_TIMEOUT_S} s, found it {job.status}.")
        if job.status != state:
            state = job.status
            say(f"job {job.id} is {state}")
        time.sleep(POLL_S)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    """Ask one question without documents."""
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
    )
    return completion.choices[0].message.content or ""


def read_document(client: openai.OpenAI) -> None:
    """Upload a document, find it, and have a question answered from it with a citation.

    Raises:
        ContractError: It is not found, the answer is not in it, or the citation leads elsewhere.
    """
    document = client.files.create(file=("warranty.md", DOCUMENT.encode()), purpose="assistants")
    store = client.vector_stores.create(name="journey")
    attached = client.vector_stores.files.create_and_poll(document.id, vector_store_id=store.id)
    expect(attached.status == "completed", "a document that is taken in", attached.last_error or attached.status)
    hits = list(client.vector_stores.search(store.id, query=QUESTION))
    expect(bool(hits) and hits[0].file_id == document.id, f"a passage of {document.id} found first", hits)
    answer = client.responses.create(
        model=BASE_MODEL,
        input=QUESTION,
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
        temperature=0,
        max_output_tokens=60,
    )
    output: Any = answer.output
    content = output[-1].content[0]
    cited = [annotation.file_id for annotation in content.annotations]
    expect(FACT in content.text, f"an answer with {FACT!r}", content.text)
    expect(document.id in cited, f"a citation of {document.id}", content.annotations)
    say(f"warranty.md: {content.text!r}, {len(cited)} citations of it")
    client.vector_stores.delete(store.id)
    client.files.delete(document.id)


def evaluate(url: str, data: DataDir) -> None:
    """Evaluate the demo's assistant on a few questions, as a person would type it.

    Raises:
        ContractError: A question was not answered.
    """
    name = f"journey-{int(time.time())}"
    options = [
        f"questions={quote_value(str(EXAMPLE / 'questions.jsonl'))}",
        f"model={MODES['rag']}",
        f"url={url}/v1",
        "judge=none",
    ]
    run_stage("scripts/evaluate.py", *options, f"limit={QUESTIONS}", f"name={name}", name_data_dir(str(data.root)))
    report = json.loads((data.reports / name / "report.json").read_text(encoding="utf-8"))
    counts = (report["answers"], report["errors"])
    expect(counts == (QUESTIONS, 0), f"{QUESTIONS} answers and no error", counts)
    say(f"evaluated {MODES['rag']}: success {report['success']['mean']:.0%} of {QUESTIONS} questions")


def walk() -> None:
    """Start the server and go all steps.

    Raises:
        NotFound: The demo has left nothing to go on.
        LoamError: A step did not hold.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(PROJECT / "data"))
    data = DataDir(parser.parse_args().data_dir.resolve())
    if not (data.run(RUN_ID) / "adapter" / "manifest.json").is_file():
        raise NotFound(f"data_dir: wanted what the demo makes, found no run {RUN_ID} in {data.runs}. Run: make demo")
    start = time.monotonic()
    with run_server(list_serve_options(data), data.root / "logs" / "journey-serve.log") as url:
        key = os.environ.get("LOAM_API_KEY", "none")
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300) as client:
            train_by_job(client)
            read_document(client)
        evaluate(url, data)
    say(f"a job, a document, an evaluation: all held after {time.monotonic() - start:.0f} s")


def main() -> None:
    """Walk; an error of the endpoint becomes one sentence."""
    try:
        walk()
    except openai.APIError as error:
        raise LoamError(f"the endpoint refused a step: {error}. See the server's lines above.") from error


if __name__ == "__main__":
    run_command(main)
