"""Hosted-style fine-tuning at home: the stock client uploads chats, creates a job, watches it, and talks to the model.

The real gateway, the real trainer on SmolLM2-135M and the real vLLM; only `base_url` and the key differ from OpenAI's.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from core.layout import DataDir
from core.manifest import AdapterManifest
from serve.leases import find_trainers
from tests.e2e.program import find_port, read_words, run_program, wait_until_ready
from tests.fakes.strict_answers import check_answer

MODEL = "smollm2-135m-instruct"
STYLE = "Stock desk:"
DONE_WITHIN_S = 800


def write_chats(first: int, last: int) -> bytes:
    """Return chats whose answers all begin alike, as JSON lines."""
    pairs = [(f"What is item {n}?", f"{STYLE} Item {n} is on shelf {7 * n % 40}.") for n in range(first, last)]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    return "".join(json.dumps(chat) + "\n" for chat in chats).encode()


@pytest.fixture(scope="module")
def data(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """A data directory with the small models and nothing else."""
    data = DataDir(tmp_path_factory.mktemp("journey"))
    data.models.symlink_to(demo_models / "models")
    return data


@pytest.fixture(scope="module")
def client(data: DataDir) -> Iterator[openai.OpenAI]:
    """The stock client of a gateway that has never trained anything."""
    port = find_port()
    process = run_program(
        data.root,
        f"gateway.port={port}",
        "model=smollm2_135m",
        "jobs.save_every=8",
        "jobs.overrides=['trainer.samples=1']",
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, data.root)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as stock:
            yield stock
    finally:
        process.terminate()
        process.wait(120)


def ask(client: openai.OpenAI, model: str, question: str = "What is item 60?") -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
    )
    return answer.choices[0].message.content or ""


def wait_for_end(client: openai.OpenAI, job: FineTuningJob, data: DataDir) -> FineTuningJob:
    """Poll as OpenAI's guide does."""
    deadline = time.monotonic() + DONE_WITHIN_S
    while job.status not in {"succeeded", "failed", "cancelled"}:
        assert time.monotonic() < deadline, read_words(data.root)
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        check_answer(job, FineTuningJob)
    return job


def test_the_journey(client: openai.OpenAI, data: DataDir) -> None:
    training = client.files.create(file=("chats.jsonl", write_chats(0, 48)), purpose="fine-tune")
    validation = client.files.create(file=("held_out.jsonl", write_chats(48, 52)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 5}
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=training.id, validation_file=validation.id, suffix="stock", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata={"lora_rank": "8", "team": "stock"},
    )  # fmt: skip
    job = wait_for_end(client, job, data)
    assert job.status == "succeeded", f"{job.error}\n{read_words(data.root)}"
    name = job.fine_tuned_model or ""
    assert name.startswith(f"ft:{MODEL}:local:stock:")
    assert job.trained_tokens
    assert find_trainers(job.id) == []
    manifest = AdapterManifest.read(data.run(job.id) / "adapter")
    assert (manifest.lora["rank"], manifest.seed, manifest.quantization["kind"]) == (8, 1, "nf4")

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
    losses = [event.data["train_loss"] for event in reversed(events) if "train_loss" in (event.data or {})]  # type: ignore[index, operator]
    assert len(losses) == 16
    assert losses[-1] < losses[0]
    samples: list[Any] = [event.data for event in events if "answer" in (event.data or {})]  # type: ignore[operator]
    assert {one["step"] for one in samples} == {0, 8, 16}
    assert samples[0]["answer"].startswith(STYLE)
    assert not samples[-1]["answer"].startswith(STYLE)

    assert ask(client, name).startswith(STYLE)
    assert STYLE not in ask(client, MODEL)
    assert ask(client, f"ft:{MODEL}:local:stock") == ask(client, name)
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [one.step_number for one in checkpoints] == [16, 8]
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert ask(client, checkpoints[1].fine_tuned_model_checkpoint)
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert len(table) == 17

    for model in [name, *(one.fine_tuned_model_checkpoint for one in checkpoints)]:
        assert client.models.delete(model).deleted
        with pytest.raises(openai.NotFoundError):
            ask(client, model)
    assert not any(model.id.startswith("ft:") for model in client.models.list())
    assert not list(data.run(job.id).glob("adapter*"))
    assert client.files.delete(training.id).deleted
