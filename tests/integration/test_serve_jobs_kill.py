"""Promises T3, T5 and T6: kill the gateway, the trainer or both at any time, or cancel: one right state, no orphan.

Real SIGKILLs on a gateway in a process of its own, with the scripted trainer and vLLM. LOAM_TEST_SEED replays;
LOAM_TEST_FULL=1 has the full counts.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import text

from core.events import read_events
from retrieval.database import open_database, read_transaction
from serve.jobs import Lease, read_job
from serve.leases import find_trainers, is_held
from tests.fakes.engine import BASE
from tests.fakes.gateway import running_gateway
from tests.fakes.warm_gateway import GatewayProcess, WarmGateway

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
SEED = int(os.environ.get("LOAM_TEST_SEED", "20261125"))
RIGHT_WITHIN_S = 30.0
CANCELLED_WITHIN_S = 10.0
STEPS = 20
SLOW = json.dumps({"step_s": 0.1})
PLACES = ("job.spawned", "job.leased", "job.loaded", "job.results_kept", "job.written", "job.settled")
"""Between the states that others see; the last four lie between the adapter on disk and the job's success (T6)."""


@pytest.fixture(scope="module")
def server() -> Iterator[WarmGateway]:
    with WarmGateway() as server:
        yield server


def create(client: openai.OpenAI) -> str:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    content = (json.dumps(row) + "\n").encode() * STEPS
    file = client.files.create(file=("t.jsonl", content), purpose="fine-tune").id
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 1}}}
    return client.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="k", method=method).id


def wait_for(check: Callable[[], Any], patience_s: float = RIGHT_WITHIN_S) -> Any:
    deadline = time.monotonic() + patience_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def list_programs(job_id: str) -> list[int]:
    """Return the trainers themselves, without their keepers."""
    return [pid for pid in find_trainers(job_id) if is_program(pid)]


def is_program(pid: int) -> bool:
    try:
        return b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False  # it ended meanwhile


def check_running(folder: Path, job_id: str) -> None:
    """See that a job is not said to run without a process of its lease, and has one trainer at most."""
    database = open_database(folder / "loam.db")
    query = "SELECT j.status, l.* FROM fine_tuning_jobs j LEFT JOIN job_leases l ON l.job_id = j.id WHERE j.id = :id"
    with read_transaction(database) as connection:  # both as they are at one moment
        row = connection.execute(text(query), {"id": job_id}).one()
    database.dispose()
    status, lease = row.status, None if row.pid is None else Lease(row.pid, row.started_ticks, row.boot_id)
    assert len(list_programs(job_id)) <= 1
    assert status != "running" or lease is not None
    assert lease is None or is_held(lease) or status == "running"


def check_finished(gateway: GatewayProcess, job_id: str) -> None:
    """See that a job has succeeded as if nobody had touched it."""
    folder = gateway.folder
    with gateway.client() as client:
        job = wait_for(lambda: (found := client.fine_tuning.jobs.retrieve(job_id)).finished_at and found, 90)
        assert job.status == "succeeded", job.error
        tuned = [model.id for model in client.models.list() if job_id[6:14] in model.id]
        assert sorted(tuned) == sorted({job.fine_tuned_model, *(f"{job.fine_tuned_model}:ckpt-step-{step}"
                                                               for step in (10, 15, 20))})  # fmt: skip
        answer = client.chat.completions.create(
            model=job.fine_tuned_model or "", messages=[{"role": "user", "content": "hello"}]
        )
        assert answer.model == job.fine_tuned_model
        results = [file for file in client.files.list(purpose="fine-tune-results") if job_id in file.filename]
        assert [file.id for file in results] == job.result_files
    run = folder / "runs" / job_id
    steps = {event["step"] for event in read_events(run / "events.jsonl") if event["type"] == "step"}
    assert steps == set(range(1, STEPS + 1))
    assert not (run / "doubles.txt").exists(), "two trainers were on the job"
    assert not list(run.glob(".*.tmp"))
    assert find_trainers(job_id) == []


def kill(kind: str, gateway: GatewayProcess, job_id: str, chance: random.Random) -> None:
    """Kill one or both, in any order."""
    victims = {"trainer": ["trainer"], "gateway": ["gateway"], "both": ["trainer", "gateway", "keeper"]}[kind]
    for victim in chance.sample(victims, len(victims)):
        if victim == "gateway":
            gateway.kill()
            continue
        programs = list_programs(job_id)
        for pid in programs if victim == "trainer" else set(find_trainers(job_id)) - set(programs):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it went with the other one


def list_kills() -> list[str]:
    return ["gateway", "trainer", "both"] * (10 if IS_FULL else 1)


def test_kills_of_gateway_trainer_or_both(
    server: WarmGateway, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")
    slowest_s = 0.0
    gateway = server.start_gateway(tmp_path, LOAM_FAKE_TRAINER=SLOW)
    assert gateway.wait_until_ready()
    for turn, kind in enumerate(list_kills()):
        with gateway.client() as client:
            job_id = create(client)
            time.sleep(chance.uniform(0.2, 3.0))
            check_running(tmp_path, job_id)
        kill(kind, gateway, job_id, chance)
        since = time.monotonic()
        if kind != "trainer":
            wait_for(lambda: not find_trainers(job_id))  # noqa: B023
            gateway = server.start_gateway(tmp_path, LOAM_FAKE_TRAINER=SLOW)
            assert gateway.wait_until_ready()
        with gateway.client() as client:
            wait_for(lambda: list_programs(job_id)  # noqa: B023
                     or client.fine_tuning.jobs.retrieve(job_id).status == "succeeded")  # noqa: B023  # fmt: skip
        slowest_s = max(slowest_s, time.monotonic() - since)
        check_running(tmp_path, job_id)
        check_finished(gateway, job_id)
        sys.stdout.write(f"{turn + 1}: {kind} killed, right again after {time.monotonic() - since:.1f} s at most\n")
    gateway.stop()
    assert slowest_s < RIGHT_WITHIN_S
    record_property("kills", len(list_kills()))
    record_property("right_again_s", round(slowest_s, 1))


@pytest.mark.parametrize(
    "place", [*PLACES * (5 if IS_FULL else 0), *(() if IS_FULL else ("job.leased", "job.written"))]
)
def test_a_kill_between_two_states_leaves_one_of_them(
    server: WarmGateway, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    gateway = server.start_gateway(tmp_path, LOAM_TEST_BUILD="1", LOAM_FAILPOINT=place)
    assert gateway.wait_until_ready()
    with gateway.client() as client:
        job_id = create(client)
    assert gateway.wait() == -signal.SIGKILL
    wait_for(lambda: not find_trainers(job_id))
    database = open_database(tmp_path / "loam.db")
    is_settled = read_job(database, job_id).status == "succeeded"
    database.dispose()
    assert is_settled == (place == "job.settled")
    gateway = server.start_gateway(tmp_path)
    assert gateway.wait_until_ready()
    check_finished(gateway, job_id)
    gateway.stop()
    record_property("kills_between_two_states", 1)


def test_cancels_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")
    monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"step_s": 0.05}))
    slowest_s, cancelled = 0.0, 0
    with running_gateway(tmp_path, trains=True) as gateway:
        client = gateway.client()
        while cancelled < (50 if IS_FULL else 4):
            job_id = create(client)
            time.sleep(chance.uniform(0, 2.5))
            since = time.monotonic()
            try:
                status = client.fine_tuning.jobs.cancel(job_id).status
            except openai.ConflictError:  # it had ended a moment before
                assert client.fine_tuning.jobs.retrieve(job_id).status == "succeeded"
                continue
            slowest_s = max(slowest_s, time.monotonic() - since)
            assert status == "cancelled"
            cancelled += 1
            assert find_trainers(job_id) == []
            assert not [model for model in client.models.list() if job_id[6:14] in model.id]
    assert slowest_s <= CANCELLED_WITHIN_S
    record_property("cancelled", cancelled)
    record_property("slowest_cancel_s", round(slowest_s, 2))
