"""Fine-tuning jobs through the stock client: states, events, checkpoints, the model; cancel, pause, death, restart.

The gateway and its runner are real, vLLM and the trainer are scripted.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.model_deleted import ModelDeleted

from serve.job_command import GpuUse, JobsConfig
from serve.jobs import read_job
from serve.leases import find_trainers
from tests.fakes.engine import BASE
from tests.fakes.gateway import PATIENCE_S, RunningGateway, running_gateway
from tests.fakes.strict_answers import check_answer

ROWS = 20


def make_rows(count: int = ROWS) -> bytes:
    chats = [
        {"messages": [{"role": "user", "content": f"Item {row}?"}, {"role": "assistant", "content": f"=> {row}!"}]}
        for row in range(count)
    ]
    return b"".join(json.dumps(chat).encode() + b"\n" for chat in chats)


def upload(client: openai.OpenAI, content: bytes | None = None) -> str:
    return client.files.create(file=("chats.jsonl", content or make_rows()), purpose="fine-tune").id


def create(client: openai.OpenAI, **values: Any) -> FineTuningJob:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
    wanted: dict[str, Any] = {"model": BASE, "suffix": "style", "method": method, **values}
    if "training_file" not in wanted:
        wanted["training_file"] = upload(client)
    return client.fine_tuning.jobs.create(**wanted)


def wait_for(check: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + patience_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_status(client: openai.OpenAI, job_id: str, *statuses: str) -> FineTuningJob:
    def check() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status in statuses or job.finished_at is None, job
        return job if job.status in statuses else None

    found: FineTuningJob = wait_for(check)
    return found


def wait_for_step(client: openai.OpenAI, job_id: str, step: int) -> None:
    def check() -> bool:
        events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        return any(event.type == "metrics" and event.data["step"] >= step for event in events)  # type: ignore[index]

    wait_for(check)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("jobs"), trains=True) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    return gateway.client()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return what makes trainers wait before a step, as long as the file that it returns is there."""

    def hold_before(step: int) -> Path:
        file = tmp_path_factory.mktemp("hold") / "file"
        file.touch()
        monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"held_before": step, "hold": str(file)}))
        return file

    return hold_before


def ask(client: openai.OpenAI, model: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], **more)


def test_a_job_from_upload_to_answer(client: openai.OpenAI, gateway: RunningGateway) -> None:
    validation = upload(client, make_rows(4))
    notes = {"team": "blue", "lora_rank": "8"}
    made = create(client, validation_file=validation, seed=5, metadata=notes)
    check_answer(made, FineTuningJob)
    assert (made.status, made.seed, made.metadata) == ("validating_files", 5, notes)
    assert made.hyperparameters.model_dump() == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
    job = wait_for_status(client, made.id, "succeeded")
    check_answer(job, FineTuningJob)
    assert job.fine_tuned_model == f"ft:{BASE}:local:style:{made.id[6:14]}"
    assert job.trained_tokens == 1000
    assert job.finished_at
    assert ask(client, job.fine_tuned_model).model == job.fine_tuned_model
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [one.step_number for one in checkpoints] == [10, 5]
    for one in checkpoints:
        check_answer(one, FineTuningJobCheckpoint)
        assert one.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-{one.step_number}"
        assert ask(client, one.fine_tuned_model_checkpoint).model == one.fine_tuned_model_checkpoint
    assert checkpoints[0].metrics.train_loss == pytest.approx(0.3)
    assert checkpoints[0].metrics.full_valid_loss == pytest.approx(0.2)
    listed = {model.id for model in client.models.list()}
    assert {job.fine_tuned_model, f"ft:{BASE}:local:style", checkpoints[0].fine_tuned_model_checkpoint} <= listed
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(table) == 11
    assert table[5] == "5,0.6,,0.4,0.5"
    assert client.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"
    assert find_trainers(job.id) == []
    counted = httpx.get(f"{gateway.url}/metrics").text
    assert 'loam_fine_tuning_jobs{status="succeeded"} 1.0' in counted
    assert 'loam_fine_tuning_jobs{status="failed"} 0.0' in counted


def test_events_page_and_keep_their_ids(client: openai.OpenAI) -> None:
    job = wait_for_status(client, create(client).id, "succeeded")
    whole = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    for event in whole:
        check_answer(event, FineTuningJobEvent)
    assert whole[0].message == "The job has successfully completed"
    assert whole[-1].message == f"Created fine-tuning job: {job.id}"
    metrics = [event for event in whole if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == list(range(10, 0, -1))  # type: ignore[index]
    paged = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert [event.id for event in paged] == [event.id for event in whole]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list_events(job.id, after="ftevent-0")


def test_events_say_how_what_was_trained_is_published(client: openai.OpenAI) -> None:
    job = wait_for_status(client, create(client).id, "succeeded")
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data][::-1]
    assert messages[messages.index("Training has ended after 10 steps") :] == [
        "Training has ended after 10 steps",
        "Training is done: validating the model and 2 checkpoints before they are published",
        "Loaded into the model server: seeing that it answers otherwise than the base model",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]


def test_jobs_are_listed_by_page_and_by_note(client: openai.OpenAI) -> None:
    ids = [create(client, metadata={"batch": "x", "turn": str(turn)}).id for turn in range(3)]
    bare = create(client).id
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2, metadata={"batch": "x"})] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"batch": "x", "turn": "1"})] == [ids[1]]
    without = client.get("/fine_tuning/jobs?metadata=null", cast_to=object)
    assert bare in json.dumps(without)
    assert not any(one in json.dumps(without) for one in ids)
    with pytest.raises(openai.BadRequestError, match="status"):
        client.get("/fine_tuning/jobs?status=running", cast_to=object)
    for one in (*ids, bare):
        wait_for_status(client, one, "succeeded")


@pytest.mark.parametrize(
    ("content", "line"),
    [(make_rows(3) + b"nonsense\n", 4), (b"\n \n", None), (b'{"messages": []}\n', 1), (b"\xff\xfe", 1)],
)
def test_a_bad_file_fails_the_job_with_its_line(client: openai.OpenAI, content: bytes, line: int | None) -> None:
    job = wait_for_status(client, create(client, training_file=upload(client, content)).id, "failed")
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_data", "training_file")
    assert (f"line {line}" if line else "wanted at least one row") in job.error.message
    assert "/" not in job.error.message.split(":")[0]
    assert find_trainers(job.id) == []


def test_pairs_are_for_dpo_and_chats_are_not(client: openai.OpenAI) -> None:
    job = wait_for_status(client, create(client, method={"type": "dpo"}).id, "failed")
    assert "method dpo" in str(job.error)
    pair: dict[str, Any] = {"input": {"messages": [{"role": "user", "content": "Hi"}]}}
    pair |= {name: [{"role": "assistant", "content": name}] for name in ("preferred_output", "non_preferred_output")}
    file = upload(client, json.dumps(pair).encode() + b"\n")
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "learning_rate_multiplier": 2}}}
    job = wait_for_status(client, create(client, training_file=file, method=method).id, "succeeded")
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.3


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"suffix": "../x"}, "suffix"), ({"suffix": "a:b"}, "suffix"), ({"model": "gpt-4o"}, "gpt-4o"),
        ({"metadata": {"lora_rank": "32"}}, "max_lora_rank"), ({"metadata": {"lora_rank": "x"}}, "lora_rank"),
        ({"metadata": {"lora_rnk": "8"}}, "no such option"), ({"method": {"type": "reinforcement"}}, "method"),
        ({"training_file": "file-0"}, "file-0"), ({"seed": 2**40}, "seed"),
        ({"extra_body": {"method": {"type": "dpo", "supervised": {}}}}, "dpo only"),
        ({"hyperparameters": {"n_epochs": 1}}, "method alone"), ({"extra_body": {"epochs": 3}}, "epochs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(client: openai.OpenAI, values: dict[str, Any], word: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=word):
        create(client, **values)


def test_a_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", make_rows()), purpose="assistants").id
    with pytest.raises(openai.BadRequestError, match="fine-tune") as refused:
        create(client, training_file=file)
    assert refused.value.param == "training_file"


def test_a_cancelled_job_leaves_nothing_running(client: openai.OpenAI, hold: Callable[[int], Path]) -> None:
    held, job = hold(2), create(client)
    waiting = create(client)
    wait_for_step(client, job.id, 1)
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert find_trainers(job.id)
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert find_trainers(job.id) == []
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == "Fine-tuning job cancelled"
    held.unlink()
    done = wait_for_status(client, create(client).id, "succeeded")
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(done.id)


def test_a_paused_job_saves_waits_and_goes_on(client: openai.OpenAI, hold: Callable[[int], Path]) -> None:
    held, job = hold(3), create(client)
    wait_for_step(client, job.id, 2)
    client.fine_tuning.jobs.pause(job.id)
    wait_for_status(client, job.id, "queued")
    assert find_trainers(job.id) == []
    held.unlink()
    time.sleep(0.5)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    client.fine_tuning.jobs.resume(job.id)
    wait_for_status(client, job.id, "succeeded")
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert sum(message.startswith("Step ") for message in events) == 10, "no step was done twice"
    assert any("going on from here" in message for message in events)


def test_a_trainer_that_is_killed_is_started_again(client: openai.OpenAI, hold: Callable[[int], Path]) -> None:
    held, job = hold(7), create(client)
    wait_for_step(client, job.id, 6)
    for pid in find_trainers(job.id):
        if "keeper" not in " ".join(psutil.Process(pid).cmdline()):
            os.kill(pid, 9)
    held.unlink()
    assert wait_for_status(client, job.id, "succeeded").fine_tuned_model
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert "The trainer died: going on from the last checkpoint" in messages
    assert "checkpoint-5: whole, going on from here" in messages


def test_a_trainer_that_always_dies_fails_the_job(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"die_at": 2}))
    job = wait_for_status(client, create(client).id, "failed")
    assert job.error is not None
    assert job.error.code == "trainer_died"
    assert "signal 9" in job.error.message


def test_a_fault_of_the_trainer_is_the_jobs(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ["storage_full", "Could not write /secret/runs/x: no space. Free some disk space.", 7]
    monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"fault": fault}))
    job = wait_for_status(client, create(client).id, "failed")
    assert job.error is not None
    assert job.error.code == "storage_full"
    assert "Free some disk space" in job.error.message


def test_a_deleted_model_goes_once_nobody_uses_it(client: openai.OpenAI, gateway: RunningGateway) -> None:
    job = wait_for_status(client, create(client, suffix="gone").id, "succeeded")
    name = job.fine_tuned_model or ""
    folder = gateway.folder / "runs" / job.id
    gateway.script(token_delay_s=0.1, reply="one two three four five six seven eight nine ten")
    try:
        stream = ask(client, name, stream=True)
        next(iter(stream))
        deleted = client.models.delete(f"ft:{BASE}:local:gone")
        check_answer(deleted, ModelDeleted)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    finally:
        gateway.script()
    assert text.endswith("ten")
    wait_for(lambda: not (folder / "adapter").exists())
    assert name not in gateway.state()["adapters"]
    with pytest.raises(openai.NotFoundError):
        ask(client, name)
    with pytest.raises(openai.NotFoundError):
        client.models.delete(name)
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        client.models.delete(checkpoint.fine_tuned_model_checkpoint)
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob("adapter*"))
    for other in (BASE, "mine"):
        with pytest.raises(openai.BadRequestError, match="operator"):
            client.models.delete(other)


def test_an_alias_moves_to_the_newest_and_back(client: openai.OpenAI) -> None:
    alias = f"ft:{BASE}:local:moves"
    names = []
    for _ in range(2):
        names.append(wait_for_status(client, create(client, suffix="moves").id, "succeeded").fine_tuned_model or "")
        assert ask(client, alias).model == names[-1]
    client.models.delete(names[1])
    assert ask(client, alias).model == names[0]
    client.models.delete(names[0])
    with pytest.raises(openai.NotFoundError):
        ask(client, alias)


def test_what_stands_is_served_again_after_a_restart(tmp_path: Path) -> None:
    with running_gateway(tmp_path, trains=True) as first:
        client = first.client()
        job = wait_for_status(client, create(client).id, "succeeded")
    with running_gateway(tmp_path) as second:
        name = job.fine_tuned_model or ""
        assert ask(second.client(), name).model == name
        assert ask(second.client(), f"ft:{BASE}:local:style").model == name
    weights = tmp_path / "runs" / job.id / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with running_gateway(tmp_path) as third, pytest.raises(openai.NotFoundError):
        ask(third.client(), name)


def test_a_job_goes_on_after_an_orderly_stop(tmp_path: Path, hold: Callable[[int], Path]) -> None:
    held = hold(4)
    with running_gateway(tmp_path, trains=True) as first:
        job = create(first.client())
        wait_for_step(first.client(), job.id, 3)
    assert find_trainers(job.id) == []
    held.unlink()
    with running_gateway(tmp_path, trains=True) as second:
        assert read_job(second.database, job.id).status in {"queued", "running"}
        wait_for_status(second.client(), job.id, "succeeded")
        events = list(second.client().fine_tuning.jobs.list_events(job.id, limit=100))
    assert sum(event.message.startswith("Step ") for event in events) == 10, "no step was done twice"


def test_vllm_gives_the_card_up_for_a_job_and_comes_back(tmp_path: Path, hold: Callable[[int], Path]) -> None:
    config, held = JobsConfig(GpuUse.stop, save_every=5, drain_s=60), hold(5)
    with running_gateway(tmp_path, trains=True, jobs=config) as gateway:
        client = gateway.client()
        gateway.script(token_delay_s=0.1, reply="one two three four five six seven eight nine ten")
        stream = ask(client, BASE, stream=True)
        next(iter(stream))
        job = create(client)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text.endswith("ten"), "what runs is let end"
        wait_for_step(client, job.id, 4)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).estimated_finish)
        with pytest.raises(openai.InternalServerError, match="fine-tuning job") as away:
            ask(client, BASE)
        assert away.value.status_code == 503
        assert 1 <= int(away.value.response.headers["retry-after"]) <= 60
        held.unlink()
        done = wait_for_status(client, job.id, "succeeded")
        assert ask(client, done.fine_tuned_model or "").model == done.fine_tuned_model
        assert ask(client, "mine").choices[0].message.content


def wait_for_publishing(client: openai.OpenAI, job_id: str) -> None:
    """Wait until a job has been trained and waits for vLLM, which is kept away; it is said to run."""

    def check() -> bool:
        return client.fine_tuning.jobs.list_events(job_id).data[0].message.startswith("Waiting for the model server")

    wait_for(check)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.fine_tuned_model, job.estimated_finish) == ("running", None, None)


def test_a_trained_job_runs_until_vllm_is_back_and_can_be_cancelled_until_then(tmp_path: Path) -> None:
    config = JobsConfig(GpuUse.stop, save_every=5, drain_s=60)
    with running_gateway(tmp_path, trains=True, jobs=config) as gateway:
        client = gateway.client()
        for is_cancelled in (True, False):
            with gateway.without_restarts():
                job = create(client)
                wait_for_publishing(client, job.id)
                if is_cancelled:
                    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
            if not is_cancelled:
                name = wait_for_status(client, job.id, "succeeded").fine_tuned_model or ""
                assert ask(client, name).model == name
            listed = [model.id for model in client.models.list() if job.id[6:14] in model.id]
            assert bool(listed) != is_cancelled
