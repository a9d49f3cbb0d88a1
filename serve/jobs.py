"""Fine-tuning jobs as rows: made, found, listed, moved from state to state. The queue is the table.

    validating_files ─▶ queued ─▶ running ─▶ succeeded | failed | cancelled
                          ▲           │
                          └───────────┘  its trainer or the gateway went, or it is paused

A job runs while it is trained and while what was trained is validated and published; its events say which.

Every change of state asks in SQL for the state before it, so that of two that want to end a job one does. A running job
has a lease: which process trains it. Does not know how a job is trained (job_runner.py does), nor HTTP.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, text

from core.errors import Conflict, LoamError, NotFound
from retrieval.database import read_transaction, write_transaction

ID_PREFIX = "ftjob-"
FINAL = ("succeeded", "failed", "cancelled")
STATUSES = ("validating_files", "queued", "running", *FINAL)
JSON_COLUMNS = ("hyperparameters", "options", "metadata", "arguments", "error")


class TooManyJobs(LoamError):
    """An owner has as many unfinished jobs as one may have."""

    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "too_many_jobs"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the database has it.

    Attributes:
        id: `ftjob-…`; also the id of its training run.
        owner: Whose it is.
        model: The base model's name.
        suffix: Part of the new model's name; None for none.
        seed: Of the training.
        training_file: Id of the upload.
        validation_file: Id of the upload; None for none.
        method: `supervised` or `dpo`.
        hyperparameters: OpenAI's names, `auto` replaced by the profile's values.
        options: What `metadata` said about LoRA and the like, as numbers.
        metadata: The owner's notes.
        arguments: The trainer's command line; None until the files are checked.
        total_steps: How many optimizer steps it will have, as far as can be told before; None until then.
        status: One of OpenAI's.
        is_cancelling: Whether it shall be cancelled.
        is_paused: Whether it waits until it is resumed.
        error: code, message and param; None unless it failed.
        fine_tuned_model: Name of the model that came of it.
        result_file: Id of the CSV with its figures.
        trained_tokens: Tokens that were read; None until it has ended.
        created_at: Unix seconds.
        started_at: Unix seconds of its first start.
        finished_at: Unix seconds.
    """

    id: str
    owner: str
    model: str
    suffix: str | None
    seed: int
    training_file: str
    validation_file: str | None
    method: str
    hyperparameters: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str] | None
    arguments: list[str] | None = None
    total_steps: int | None = None
    status: str = "validating_files"
    is_cancelling: bool = False
    is_paused: bool = False
    error: dict[str, Any] | None = None
    fine_tuned_model: str | None = None
    result_file: str | None = None
    trained_tokens: int | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))
    started_at: int | None = None
    finished_at: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True)
class Lease:
    """Which process trains a job: number, start and boot name one process for good.

    Attributes:
        pid: Its id, which is also its group's.
        started_ticks: When it was started, in clock ticks since boot.
        boot_id: Of the machine's boot.
    """

    pid: int
    started_ticks: int
    boot_id: str


def make_job_id() -> str:
    """Return a new job's id."""
    return f"{ID_PREFIX}{secrets.token_hex(12)}"


def insert_job(engine: Engine, job: Job, max_unfinished: int) -> None:
    """Put a job into the queue.

    Args:
        engine: The database.
        job: The job.
        max_unfinished: Jobs that one owner may have unfinished.

    Raises:
        TooManyJobs: The owner has that many.
    """
    names = [name for name in Job.__slots__ if name not in ("finished_at", "started_at")]
    statement = text(
        f"INSERT INTO fine_tuning_jobs ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"  # noqa: S608
    )
    counting = text(
        "SELECT COUNT(*) FROM fine_tuning_jobs "
        "WHERE owner = :owner AND status IN ('validating_files', 'queued', 'running')"
    )
    with write_transaction(engine) as connection:
        if connection.execute(counting, {"owner": job.owner}).scalar_one() >= max_unfinished:
            raise TooManyJobs(
                f"There are {max_unfinished} unfinished jobs of this owner already (jobs.max_unfinished). "
                "Wait for one, or cancel one.",
                retry_after_s=60,
            )
        connection.execute(statement, {name: _to_column(name, getattr(job, name)) for name in names})
        add_message(connection, job.id, f"Created fine-tuning job: {job.id}")
        add_message(connection, job.id, f"Validating training file: {job.training_file}")


def _to_column(name: str, value: Any) -> Any:
    return json.dumps(value) if name in JSON_COLUMNS and value is not None else value


def _to_job(row: RowMapping) -> Job:
    values = {name: row[name] for name in Job.__slots__}
    for name in JSON_COLUMNS:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    values["is_cancelling"], values["is_paused"] = bool(values["is_cancelling"]), bool(values["is_paused"])
    return Job(**values)


def find_job(engine: Engine, job_id: str, owner: str) -> Job:
    """Return an owner's job.

    Raises:
        NotFound: There is none, or it is another's.
    """
    with read_transaction(engine) as connection:
        row = _select(connection, job_id)
    if row is None or row["owner"] != owner:
        raise NotFound(f"fine-tuning job {job_id!r}: there is none. Create it first.", param="fine_tuning_job_id")
    return _to_job(row)


def read_job(engine: Engine, job_id: str) -> Job:
    """Return a job of anybody's that is there, for those who run it."""
    with read_transaction(engine) as connection:
        row = _select(connection, job_id)
    if row is None:
        raise NotFound(f"fine-tuning job {job_id!r}: there is none.")
    return _to_job(row)


def _select(connection: Connection, job_id: str) -> RowMapping | None:
    query = text("SELECT * FROM fine_tuning_jobs WHERE id = :id")
    return connection.execute(query, {"id": job_id}).mappings().first()


def list_jobs(
    engine: Engine, owner: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None, has_none: bool
) -> tuple[list[Job], bool]:
    """Return one page of an owner's jobs, the newest first, and whether more follow.

    Args:
        engine: The database.
        owner: Whose.
        after: Id of the last job of the page before.
        limit: Most of the page.
        metadata: Only those with all of these notes.
        has_none: Only those without any note.

    Raises:
        NotFound: The owner has no job of the id `after`.
    """
    last = None if after is None else find_job(engine, after, owner).id
    query = text(
        "SELECT * FROM fine_tuning_jobs WHERE owner = :owner AND (:last IS NULL OR number < "
        "(SELECT number FROM fine_tuning_jobs WHERE id = :last)) ORDER BY number DESC"
    )
    found: list[Job] = []
    with read_transaction(engine) as connection:
        for row in connection.execute(query, {"owner": owner, "last": last}).mappings():
            job = _to_job(row)
            notes = job.metadata or {}
            if (has_none and notes) or any(notes.get(key) != value for key, value in (metadata or {}).items()):
                continue
            found.append(job)
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


def take_waiting(engine: Engine, status: str, model: str) -> Job | None:
    """Return the job that is next in a state, those that had begun before the others; None where none waits.

    Args:
        engine: The database.
        status: `validating_files` or `queued`.
        model: The base model that is served; jobs of another one wait until it is.
    """
    query = text(
        "SELECT * FROM fine_tuning_jobs WHERE status = :status AND model = :model AND NOT is_paused "
        "ORDER BY started_at IS NULL, number LIMIT 1"
    )
    with read_transaction(engine) as connection:
        row = connection.execute(query, {"status": status, "model": model}).mappings().first()
    return None if row is None else _to_job(row)


def accept_files(engine: Engine, job_id: str, arguments: list[str], total_steps: int) -> bool:
    """Queue a job whose files are good; return whether it still wanted that."""
    statement = text(
        "UPDATE fine_tuning_jobs SET status = 'queued', arguments = :arguments, total_steps = :steps "
        "WHERE id = :id AND status = 'validating_files' AND NOT is_cancelling"
    )
    values = {"id": job_id, "arguments": json.dumps(arguments), "steps": total_steps}
    with write_transaction(engine) as connection:
        is_changed = bool(connection.execute(statement, values).rowcount)
        if is_changed:
            add_message(connection, job_id, "Files validated, moving job to queued state")
    return is_changed


def begin_job(engine: Engine, job_id: str, lease: Lease) -> bool:
    """Note that a process trains a job; return whether the job still wanted that."""
    statement = text(
        "UPDATE fine_tuning_jobs SET status = 'running', started_at = COALESCE(started_at, :now) "
        "WHERE id = :id AND status = 'queued' AND NOT is_cancelling AND NOT is_paused RETURNING started_at"
    )
    now = int(time.time())
    with write_transaction(engine) as connection:
        if connection.execute(statement, {"id": job_id, "now": now}).first() is None:
            return False
        connection.execute(
            text(
                "INSERT INTO job_leases (job_id, pid, started_ticks, boot_id) VALUES (:id, :pid, :ticks, :boot) "
                "ON CONFLICT (job_id) DO UPDATE SET pid = :pid, started_ticks = :ticks, boot_id = :boot"
            ),
            {"id": job_id, "pid": lease.pid, "ticks": lease.started_ticks, "boot": lease.boot_id},
        )
        add_message(connection, job_id, "Fine-tuning job started")
    return True


def begin_publishing(engine: Engine, job_id: str, checkpoints: int) -> bool:
    """Note that what a job has trained is validated and published; return whether the job still wanted that.

    Args:
        engine: The database.
        job_id: The job; one that an earlier gateway left at this is queued, and runs again.
        checkpoints: How many it has kept.
    """
    statement = text(
        "UPDATE fine_tuning_jobs SET status = 'running', started_at = COALESCE(started_at, :now) "
        "WHERE id = :id AND status IN ('queued', 'running') AND NOT is_cancelling"
    )
    with write_transaction(engine) as connection:
        is_changed = bool(connection.execute(statement, {"id": job_id, "now": int(time.time())}).rowcount)
        if is_changed:
            kept = f"the model and {checkpoints} checkpoint{'s' * (checkpoints != 1)}"
            add_message(connection, job_id, f"Training is done: validating {kept} before they are published")
    return is_changed


def tell(engine: Engine, job_id: str, message: str) -> None:
    """Say something about a job in its events."""
    with write_transaction(engine) as connection:
        add_message(connection, job_id, message)


def requeue_job(engine: Engine, job_id: str, why: str) -> None:
    """Put a running job whose process has gone back into the queue."""
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM job_leases WHERE job_id = :id"), {"id": job_id})
        statement = text("UPDATE fine_tuning_jobs SET status = 'queued' WHERE id = :id AND status = 'running'")
        if connection.execute(statement, {"id": job_id}).rowcount:
            add_message(connection, job_id, why, "warn")


def fail_job(engine: Engine, job_id: str, error: Mapping[str, Any]) -> bool:
    """End a job that cannot succeed, unless it has ended or shall be cancelled; return whether it did.

    Args:
        engine: The database.
        job_id: The job.
        error: code, message, param.
    """
    with write_transaction(engine) as connection:
        is_changed = _end(connection, job_id, "failed", "AND NOT is_cancelling", {"error": json.dumps(dict(error))})
        if is_changed:
            add_message(connection, job_id, str(error["message"]), "error")
    return is_changed


def succeed_job(
    connection: Connection, job_id: str, *, fine_tuned_model: str, result_file: str, trained_tokens: int | None
) -> bool:
    """End a job that has its model, within the transaction that lists the model; False where it shall be cancelled."""
    values = {"fine_tuned_model": fine_tuned_model, "result_file": result_file, "trained_tokens": trained_tokens}
    is_changed = _end(connection, job_id, "succeeded", "AND NOT is_cancelling", values)
    if is_changed:
        add_message(connection, job_id, f"New fine-tuned model created: {fine_tuned_model}")
        add_message(connection, job_id, "The job has successfully completed")
    return is_changed


def end_cancelled(engine: Engine, job_id: str) -> None:
    """End a job that shall be cancelled and that nothing works on any more."""
    with write_transaction(engine) as connection:
        if _end(connection, job_id, "cancelled", "", {}):
            add_message(connection, job_id, "Fine-tuning job cancelled")


def _end(connection: Connection, job_id: str, status: str, condition: str, values: Mapping[str, Any]) -> bool:
    columns = "".join(f", {name} = :{name}" for name in values)
    statement = text(
        f"UPDATE fine_tuning_jobs SET status = :status, is_paused = 0, finished_at = :now{columns} "  # noqa: S608
        f"WHERE id = :id AND status IN ('validating_files', 'queued', 'running') {condition}"
    )
    ended = connection.execute(statement, {**values, "id": job_id, "status": status, "now": int(time.time())})
    connection.execute(text("DELETE FROM job_leases WHERE job_id = :id"), {"id": job_id})
    return bool(ended.rowcount)


def ask_to_cancel(engine: Engine, job_id: str, owner: str) -> Job:
    """Note that a job shall be cancelled; whoever works on it ends it.

    Raises:
        NotFound: There is none, or it is another's.
        Conflict: It has ended already, in another way.
    """
    job = find_job(engine, job_id, owner)
    if job.is_final and job.status != "cancelled":
        raise Conflict(f"fine-tuning job {job_id!r}: wanted one that has not ended, found it {job.status}.")
    with write_transaction(engine) as connection:
        statement = text(
            "UPDATE fine_tuning_jobs SET is_cancelling = 1 "
            "WHERE id = :id AND status IN ('validating_files', 'queued', 'running')"
        )
        connection.execute(statement, {"id": job_id})
    return find_job(engine, job_id, owner)


def set_paused(engine: Engine, job_id: str, owner: str, *, is_paused: bool) -> Job:
    """Note that a job shall wait, or go on.

    Raises:
        NotFound: There is none, or it is another's.
        Conflict: It has ended.
    """
    job = find_job(engine, job_id, owner)
    if job.is_final:
        raise Conflict(f"fine-tuning job {job_id!r}: wanted one that has not ended, found it {job.status}.")
    if job.is_paused != is_paused:
        with write_transaction(engine) as connection:
            statement = text("UPDATE fine_tuning_jobs SET is_paused = :value WHERE id = :id")
            connection.execute(statement, {"id": job_id, "value": is_paused})
            add_message(connection, job_id, f"Fine-tuning job {'paused' if is_paused else 'resumed'}")
    return find_job(engine, job_id, owner)


def list_cancelling(engine: Engine) -> list[str]:
    """Return the ids of the unfinished jobs that shall be cancelled."""
    query = text(
        "SELECT id FROM fine_tuning_jobs WHERE is_cancelling AND status IN ('validating_files', 'queued', 'running')"
    )
    with read_transaction(engine) as connection:
        return list(connection.execute(query).scalars())


def count_jobs(engine: Engine) -> dict[str, int]:
    """Return how many jobs of all owners there are, for each of STATUSES."""
    query = text("SELECT status, COUNT(*) AS jobs FROM fine_tuning_jobs GROUP BY status")
    with read_transaction(engine) as connection:
        counts = {row.status: int(row.jobs) for row in connection.execute(query)}
    return {status: counts.get(status, 0) for status in STATUSES}


def list_leases(engine: Engine) -> dict[str, Lease | None]:
    """Return every running job with its lease; None where it has none."""
    query = text(
        "SELECT j.id, l.pid, l.started_ticks, l.boot_id FROM fine_tuning_jobs j "
        "LEFT JOIN job_leases l ON l.job_id = j.id WHERE j.status = 'running' OR l.job_id IS NOT NULL"
    )
    with read_transaction(engine) as connection:
        rows = connection.execute(query).all()
    return {row.id: None if row.pid is None else Lease(row.pid, row.started_ticks, row.boot_id) for row in rows}


def add_message(connection: Connection, job_id: str, message: str, level: str = "info") -> None:
    """Say something about a job in its events, within a transaction."""
    connection.execute(
        text("INSERT INTO job_messages (job_id, created_at, level, message) VALUES (:id, :now, :level, :message)"),
        {"id": job_id, "now": time.time(), "level": level, "message": message},
    )


def read_messages(
    engine: Engine, job_id: str, *, limit: int, before: tuple[float, int] | None = None
) -> list[dict[str, Any]]:
    """Return what the gateway has said about a job: number, created_at, level, message; the newest first.

    Args:
        engine: The database.
        job_id: The job.
        limit: Most of them.
        before: Only what is before this time and, of the same time, before this number; None: all.
    """
    earlier = "" if before is None else "AND (created_at, number) < (:created_at, :number) "
    query = text(
        "SELECT number, created_at, level, message FROM job_messages "  # noqa: S608  (constants)
        f"WHERE job_id = :id {earlier}ORDER BY created_at DESC, number DESC LIMIT :limit"
    )
    created_at, number = before or (None, None)
    values = {"id": job_id, "created_at": created_at, "number": number, "limit": limit}
    with read_transaction(engine) as connection:
        return [dict(row) for row in connection.execute(query, values).mappings()]


def find_message_time(engine: Engine, job_id: str, number: int) -> float | None:
    """Return when the gateway said something about a job; None where it has no such message."""
    query = text("SELECT created_at FROM job_messages WHERE job_id = :id AND number = :number")
    with read_transaction(engine) as connection:
        return connection.execute(query, {"id": job_id, "number": number}).scalar()
