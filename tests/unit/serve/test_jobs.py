"""Rows of jobs: one owner's only, each change of state once, the queue in order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from core.errors import Conflict, NotFound
from retrieval.database import open_database, write_transaction
from serve.jobs import (
    Job,
    Lease,
    TooManyJobs,
    accept_files,
    ask_to_cancel,
    begin_job,
    end_cancelled,
    fail_job,
    find_job,
    insert_job,
    list_jobs,
    list_leases,
    make_job_id,
    read_job,
    read_messages,
    requeue_job,
    set_paused,
    succeed_job,
    take_waiting,
)

LEASE = Lease(7, 70, "boot")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path / "loam.db")
    yield engine
    engine.dispose()


def add(database: Engine, owner: str = "local", **values: Any) -> Job:
    job = Job(
        id=make_job_id(), owner=owner, model="base", suffix=None, seed=1, training_file="file-a", validation_file=None,
        method="supervised", hyperparameters={"n_epochs": 1}, options={}, metadata=None,
    )  # fmt: skip
    job = Job(**{name: values.get(name, getattr(job, name)) for name in Job.__slots__})
    insert_job(database, job, 5)
    return job


def run(database: Engine, job: Job) -> None:
    assert accept_files(database, job.id, ["a=b"], 10)
    assert begin_job(database, job.id, LEASE)


def succeed(database: Engine, job: Job) -> bool:
    with write_transaction(database) as connection:
        return succeed_job(connection, job.id, fine_tuned_model="ft:x", result_file="file-r", trained_tokens=9)


def test_a_row_holds_what_was_put_in(database: Engine) -> None:
    job = add(database, metadata={"a": "ü"}, options={"lora_rank": 8}, suffix="s")
    assert find_job(database, job.id, "local") == job
    with pytest.raises(NotFound):
        find_job(database, job.id, "other")
    with pytest.raises(NotFound):
        find_job(database, "ftjob-0", "local")


def test_a_job_goes_its_way_once(database: Engine) -> None:
    job = add(database)
    assert not begin_job(database, job.id, LEASE), "its files are not checked"
    run(database, job)
    assert not accept_files(database, job.id, [], 1)
    assert list_leases(database) == {job.id: LEASE}
    assert succeed(database, job)
    assert not succeed(database, job)
    assert not fail_job(database, job.id, {"code": "c", "message": "m", "param": None})
    ended = read_job(database, job.id)
    assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == ("succeeded", "ft:x", 9)
    assert ended.finished_at
    assert list_leases(database) == {}
    with pytest.raises(Conflict, match="succeeded"):
        ask_to_cancel(database, job.id, "local")


def test_what_shall_be_cancelled_neither_begins_nor_succeeds(database: Engine) -> None:
    job = add(database)
    run(database, job)
    ask_to_cancel(database, job.id, "local")
    assert not succeed(database, job)
    assert not fail_job(database, job.id, {"code": "c", "message": "m", "param": None})
    requeue_job(database, job.id, "why")
    assert not begin_job(database, job.id, LEASE)
    end_cancelled(database, job.id)
    assert read_job(database, job.id).status == "cancelled"
    assert read_messages(database, job.id, limit=1)[0]["message"] == "Fine-tuning job cancelled"


def test_the_queue_is_in_order_and_what_had_begun_comes_first(database: Engine) -> None:
    first, second = add(database), add(database)
    other = add(database, model="another")
    for job in (first, second, other):
        accept_files(database, job.id, [], 1)
    taken = take_waiting(database, "queued", "base")
    assert taken is not None
    assert taken.id == first.id
    begin_job(database, second.id, LEASE)
    requeue_job(database, second.id, "the trainer died")
    assert list_leases(database) == {}
    taken = take_waiting(database, "queued", "base")
    assert taken is not None
    assert taken.id == second.id
    set_paused(database, second.id, "local", is_paused=True)
    assert not begin_job(database, second.id, LEASE)
    taken = take_waiting(database, "queued", "base")
    assert taken is not None
    assert taken.id == first.id
    assert take_waiting(database, "running", "base") is None


def test_lists_page_and_filter(database: Engine) -> None:
    jobs = [add(database, metadata={"n": str(n % 2)} if n else None) for n in range(5)]
    add(database, owner="other")
    found, more = list_jobs(database, "local", after=None, limit=2, metadata=None, has_none=False)
    assert ([job.id for job in found], more) == ([jobs[4].id, jobs[3].id], True)
    found, more = list_jobs(database, "local", after=jobs[3].id, limit=9, metadata={"n": "0"}, has_none=False)
    assert ([job.id for job in found], more) == ([jobs[2].id], False)
    found, _ = list_jobs(database, "local", after=None, limit=9, metadata=None, has_none=True)
    assert [job.id for job in found] == [jobs[0].id]
    with pytest.raises(NotFound):
        list_jobs(database, "other", after=jobs[0].id, limit=9, metadata=None, has_none=False)
    with pytest.raises(TooManyJobs, match=r"jobs\.max_unfinished"):
        add(database)
