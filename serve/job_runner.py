"""Runs fine-tuning jobs: checks their files, trains one after the other, and hands what was trained to tuned_models.py.

A job is trained by `python train/run.py … run_id=<job> resume=auto`, as a person would start it, under a keeper that
takes the whole process group down when the gateway goes (docs/decisions/0065). Whoever goes, the row says so within
moments and the job goes on from its last whole checkpoint: never two trainers on a job, never one that nobody owns.
Does not know HTTP.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from core import errors
from core.errors import Conflict, EngineError, LoamError, NotFound, StorageFull
from core.events import read_events, read_events_from
from core.failpoints import reach
from core.manifest import ADAPTER_MANIFEST
from retrieval.uploads import check_upload, find_upload
from serve.archive import Archive
from serve.file_check import check_upload_rows
from serve.job_command import PROGRAM, GpuUse, JobsConfig, build_arguments, build_command, hide_paths, read_profile
from serve.job_estimate import estimate_job
from serve.job_events import Progress
from serve.jobs import (
    Job,
    Lease,
    accept_files,
    ask_to_cancel,
    begin_job,
    end_cancelled,
    fail_job,
    list_cancelling,
    list_leases,
    read_job,
    requeue_job,
    set_paused,
    take_waiting,
)
from serve.kept_process import KeptProcess, start_kept
from serve.leases import end_leftovers, read_lease
from serve.model_server import Upstream
from serve.tuned_models import TunedModels

logger = logging.getLogger(__name__)

POLL_S = 0.2
IDLE_S = 5.0
UNKNOWN_LEFT_S = 60.0
"""What clients are told to wait while nobody can say how long a job will take."""
RETRY_S = 5.0
CANCEL_PATIENCE_S = 9.0
"""How long a request to cancel waits until nothing of the job is left; killing takes moments."""
LOG_TAIL_BYTES = 16_384
SIGNALLED = 128
"""Exit codes above it tell the signal that ended a process."""
EXIT_CODES = {
    kind.exit_code: kind.openai_code
    for kind in reversed([one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LoamError)])
}


class Ending(Enum):
    """Why a trainer's process is gone."""

    TRAINED = "trained"
    STOPPED = "stopped"
    FAILED = "failed"
    DIED = "died"


@dataclass(slots=True)
class Attempt:
    """One process on a job.

    Attributes:
        job: The job.
        events_at: Where in events.jsonl its own events begin, in bytes.
        log_at: Where in the log its own words begin, in bytes.
        progress: How far the job is.
    """

    job: Job
    events_at: int
    log_at: int
    progress: Progress


class JobRunner:
    """Works on the queue for as long as the gateway runs."""

    def __init__(
        self,
        archive: Archive,
        engine: Upstream,
        models: TunedModels,
        config: JobsConfig,
        hardware: str,
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            archive: The database and the data directory.
            engine: What gives the card up while a job trains, with `jobs.gpu=stop`.
            models: Where what was trained goes.
            config: The operator's settings.
            hardware: Name of the hardware profile that trainers are given.
            program: What trains.
        """
        self.config = config
        self.models = models
        self.progress: dict[str, Progress] = {}
        self._archive = archive
        self._engine = engine
        self._hardware = hardware
        self._program = program
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._active: Counter[str] = Counter()  # jobs that somebody is on: for a moment, both tasks may be
        self._calls: set[str] = set()  # jobs whose trainer shall end: cancelled or paused
        self._deaths: dict[str, tuple[int, int]] = {}  # by job: steps at the last death, deaths at that step
        self._process: KeptProcess | None = None
        self._is_stopping = False

    async def start(self) -> None:
        """Put what an earlier gateway left in order, and begin."""
        await self._archive.run(self._recover)
        self._tasks = [
            asyncio.create_task(self._work("validating_files", self._check_files), name="job-files"),
            asyncio.create_task(self._work("queued", self._work_on), name="job-trainer"),
        ]

    async def estimate(self, job: Job) -> dict[str, Any]:
        """Return what a job that is not made yet would take; errors are those of `estimate_job`."""
        return await estimate_job(job, self.config, self._archive.data, self._hardware, self._program)

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    async def stop(self) -> None:
        """Let the trainer save a checkpoint and end; its job goes on with the next gateway."""
        self._is_stopping = True
        self._wake.set()
        if self._process is not None:
            await self._process.end(self.config.stop_timeout_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=RETRY_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None:
            await self._process.end(0.0)

    def _recover(self) -> None:
        """End trainers that an earlier gateway has left, and say that their jobs wait."""
        engine = self._archive.engine
        for job_id, lease in list_leases(engine).items():
            killed = end_leftovers(job_id, lease)
            logger.warning("job goes on", extra={"job": job_id, "killed": killed})
            is_done = is_trained(self._archive.data.run(job_id))
            what = "publishing what was trained" if is_done else "going on from the last checkpoint"
            requeue_job(engine, job_id, f"The gateway was restarted: {what}")
        for job_id in list_cancelling(engine):
            end_cancelled(engine, job_id)

    async def cancel(self, job_id: str, owner: str) -> Job:
        """Cancel an owner's job; nothing of it runs any more when this returns.

        Raises:
            NotFound: There is none, or it is another's.
            Conflict: It has ended already.
        """
        job = await self._archive.run(ask_to_cancel, self._archive.engine, job_id, owner)
        return await self._call(job)

    async def set_paused(self, job_id: str, owner: str, *, is_paused: bool) -> Job:
        """Let an owner's job wait, with what it has learned saved, or go on. Errors are those of `cancel`."""
        job = await self._archive.run(set_paused, self._archive.engine, job_id, owner, is_paused=is_paused)
        if is_paused and job.status == "running":
            self._calls.add(job.id)
        self._wake.set()
        return job

    async def _call(self, job: Job) -> Job:
        """End a job that shall be cancelled, through whoever is on it."""
        self._calls.add(job.id)
        self._wake.set()
        deadline = asyncio.get_running_loop().time() + CANCEL_PATIENCE_S
        while not job.is_final and asyncio.get_running_loop().time() < deadline:
            if job.id not in self._active:
                await self._archive.run(end_cancelled, self._archive.engine, job.id)
            else:
                await asyncio.sleep(POLL_S / 4)
            job = await self._archive.run(read_job, self._archive.engine, job.id)
        return job

    async def _work(self, status: str, handle: Callable[[Job], Awaitable[None]]) -> None:
        """Handle the jobs of a state one after the other."""
        base = self.models.base.name
        while not self._is_stopping:
            self._wake.clear()
            job = None
            try:
                job = await self._archive.run(take_waiting, self._archive.engine, status, base)
                if job is not None:
                    self._active[job.id] += 1
                    await self._handle(job, handle)
                    continue
                pause_s = IDLE_S
            except (LoamError, OSError) as error:
                logger.warning("jobs wait: %s", error)
                pause_s = RETRY_S
            except Exception:  # whatever it was: without this task no job would ever be looked at again
                logger.exception("the queue of jobs cannot be worked on")
                pause_s = RETRY_S
            finally:
                if job is not None:
                    self._leave(job.id)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)

    def _leave(self, job_id: str) -> None:
        """Forget a job that nobody is on any more."""
        self._active[job_id] -= 1
        if not self._active[job_id]:
            del self._active[job_id]
            self._calls.discard(job_id)
            self.progress.pop(job_id, None)

    async def _handle(self, job: Job, handle: Callable[[Job], Awaitable[None]]) -> None:
        """Handle one job; what nobody foresaw fails the job and not the gateway."""
        try:
            now = await self._archive.run(read_job, self._archive.engine, job.id)  # it may have been cancelled since
            if not now.is_cancelling and not now.is_final:
                await handle(now)
        except (Conflict, StorageFull, OSError):
            raise
        except LoamError as error:
            await self._fail(job, error.openai_code, error.message, error.param)
        except Exception:
            logger.exception("job failed", extra={"job": job.id})
            await self._fail(job, "internal_error", "Something went wrong in the gateway. Its log has the details.")
        now = await self._archive.run(read_job, self._archive.engine, job.id)
        if now.is_cancelling and not now.is_final:
            await self._archive.run(end_cancelled, self._archive.engine, job.id)

    async def _fail(self, job: Job, code: str, message: str, param: str | None = None) -> None:
        """End a job that cannot succeed; nothing of this machine's paths is told."""
        shown = hide_paths(message, self._archive.data.root)
        error = {"code": code, "message": shown[:4000], "param": param}
        await self._archive.run(fail_job, self._archive.engine, job.id, error)
        logger.warning("job failed", extra={"job": job.id, "code": code})

    async def _check_files(self, job: Job) -> None:
        """Check a job's files and queue it, or fail it with the lines that are wrong."""
        archive = self._archive
        rows = 0
        for field, file_id in (("training_file", job.training_file), ("validation_file", job.validation_file)):
            if file_id is None:
                continue
            try:
                upload = await archive.run(find_upload, archive.engine, file_id, job.owner)
            except NotFound as error:
                raise errors.TrainingDataError(
                    f"{file_id}: the file was deleted before the job could begin.", param=field
                ) from error
            path = await archive.run(check_upload, archive.data, upload)
            found = await self._unless_called(job, check_upload_rows(path, upload.name, field, job.method))
            if found is None:
                return
            rows = found if field == "training_file" else rows
        profile = read_profile(self.config, job.method)
        arguments, steps = build_arguments(job, self.config, profile, archive.data, self._hardware, rows)
        await archive.run(accept_files, archive.engine, job.id, arguments, steps)
        self._wake.set()

    async def _unless_called(self, job: Job, work: Awaitable[int]) -> int | None:
        """Return what some work comes to; None where the job was cancelled meanwhile, which ends the work."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=POLL_S)
                if job.id in self._calls and not task.done():
                    return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work_on(self, job: Job) -> None:
        """Train a job, unless that is done already, and publish what came of it."""
        run = self._archive.data.run(job.id)
        if not await self._archive.run(is_trained, run):
            ending = await self._train_in_room(job)
            if ending is not Ending.TRAINED:
                return
        if self._is_stopping:
            await self._requeue(job, "The gateway stops: the trained model is served when it starts again")
            return
        self.progress.pop(job.id, None)  # of the training; nobody can tell how long the rest will take
        try:
            await self._publish(job)
        except EngineError as error:
            await self._fail(job, "adapter_refused", error.message)

    async def _publish(self, job: Job) -> None:
        """Publish what was trained; a job that is cancelled meanwhile waits for no model server.

        Raises:
            LoamError: It cannot be served.
        """
        task = asyncio.ensure_future(self.models.publish(job))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=POLL_S)
                if job.id in self._calls and not task.done():
                    now = await self._archive.run(read_job, self._archive.engine, job.id)
                    if now.is_cancelling:  # so that nothing can settle it otherwise
                        return
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _requeue(self, job: Job, why: str) -> None:
        await self._archive.run(requeue_job, self._archive.engine, job.id, why)

    async def _train_in_room(self, job: Job) -> Ending:
        """Train, while vLLM leaves the card where it is to."""
        if self.config.gpu is not GpuUse.stop:
            return await self._train(job)
        try:
            await self._engine.pause(lambda: self._tell_left_s(job), lambda: self.models.drain(self.config.drain_s))
            return await self._train(job)
        finally:
            self._engine.resume()

    def _tell_left_s(self, job: Job) -> float:
        """Return how many seconds a job will have the card, as far as can be told."""
        progress = self.progress.get(job.id)
        finish = progress.estimate_finish() if progress is not None else None
        return UNKNOWN_LEFT_S if finish is None else finish - time.time()

    async def _train(self, job: Job) -> Ending:
        """Run a trainer until it ends or is called off, and settle what that means for the job."""
        archive, run = self._archive, self._archive.data.run(job.id)
        log = archive.data.root / "logs" / f"{job.id}.log"
        await archive.run(end_leftovers, job.id, None)
        attempt = await archive.run(begin_attempt, job, run / "events.jsonl", log)
        self.progress[job.id] = attempt.progress
        scratch = Path(tempfile.mkdtemp(prefix="loam-job-"))
        environment = {name: value for name, value in os.environ.items() if name != "LOAM_API_KEY"}
        if self.config.cards is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.cards
        try:
            command = build_command(job, archive.data, self._program)
            process = await start_kept(command, {**environment, "TMPDIR": str(scratch)}, scratch, log)
            if process is None:
                await self._fail(job, "internal_error", "The trainer could not be started. The gateway's log says why.")
                return Ending.FAILED
            self._process = process
            try:
                reach("job.spawned")
                lease = read_lease(process.group) or Lease(process.group, 0, "")
                if await archive.run(begin_job, archive.engine, job.id, lease):
                    reach("job.leased")
                    await self._watch(attempt, process, run / "events.jsonl")
            finally:
                await process.end(0.0)
                self._process = None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return await self._settle(attempt, process.exit_code or 0, run, log)

    async def _watch(self, attempt: Attempt, process: KeptProcess, events: Path) -> None:
        """Follow a trainer until its process has ended; end it where the job is cancelled or paused."""
        offset = attempt.events_at
        while not await process.wait(POLL_S):
            new, offset = await self._archive.run(read_events_from, events, offset)
            for event in new:
                attempt.progress.add(event)
            if attempt.job.id in self._calls:
                now = await self._archive.run(read_job, self._archive.engine, attempt.job.id)
                await process.end(0.0 if now.is_cancelling else self.config.stop_timeout_s)

    async def _settle(self, attempt: Attempt, code: int, run: Path, log: Path) -> Ending:
        """Say in the job's row what the end of its trainer means."""
        job, archive = attempt.job, self._archive
        now = await archive.run(read_job, archive.engine, job.id)
        if now.is_cancelling:
            return Ending.STOPPED
        if await archive.run(is_trained, run):
            return Ending.TRAINED
        if self._is_stopping or now.is_paused:
            await self._requeue(job, "Saved and waiting" if now.is_paused else "The gateway stops: saved and waiting")
            return Ending.STOPPED
        ended = await archive.run(read_end, attempt, run / "events.jsonl", log, code)
        if ended is not None:
            fault, message = ended
            param = "training_file" if fault == errors.TrainingDataError.openai_code else None
            await self._fail(job, fault, message, param)
            return Ending.FAILED
        step, deaths = self._deaths.get(job.id, (-1, 0))
        deaths = deaths + 1 if attempt.progress.step <= step else 1
        self._deaths[job.id] = (max(step, attempt.progress.step), deaths)
        if deaths > self.config.max_restarts:
            how = f"signal {code - SIGNALLED}" if code > SIGNALLED else f"exit code {code}"
            await self._fail(job, "trainer_died", f"The trainer died {deaths} times at the same place ({how}).")
            return Ending.FAILED
        await self._requeue(job, "The trainer died: going on from the last checkpoint")
        return Ending.DIED


def begin_attempt(job: Job, events: Path, log: Path) -> Attempt:
    """Return where a new process on a job begins, with how far earlier ones came; blocks."""
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(job.total_steps or 1)
    known, events_at = read_events_from(events, 0)
    for event in known:
        progress.add(event)
    progress.timed.clear()  # what lies between two processes is no speed
    return Attempt(job, events_at, log.stat().st_size if log.exists() else 0, progress)


def is_trained(run: Path) -> bool:
    """Tell whether a run has published its adapter and its report."""
    if not (run / "adapter" / ADAPTER_MANIFEST).is_file():
        return False
    return any(event["type"] == "done" for event in read_events(run / "events.jsonl"))


def read_end(attempt: Attempt, events: Path, log: Path, code: int) -> tuple[str, str] | None:
    """Return code and message of the fault that ended a trainer; None where it was killed and may go on.

    Args:
        attempt: The trainer's.
        events: The run's events.
        log: What it printed.
        code: Its exit code.
    """
    new, _ = read_events_from(events, attempt.events_at)
    last: dict[str, Any] = next((event for event in reversed(new) if event["type"] == "error"), {})
    if last and last.get("code") != "interrupted":
        return str(last["code"]), str(last["message"])
    if last or code > SIGNALLED or code == Conflict.exit_code:  # a conflict: the last one's process is still ending
        return None
    with log.open("rb") as file:
        file.seek(max(attempt.log_at, log.stat().st_size - LOG_TAIL_BYTES))
        words = file.read().decode(errors="replace")
    message = words.rpartition("error: ")[2].strip() or f"The trainer ended with exit code {code}."
    return EXIT_CODES.get(code, "internal_error"), message[:2000]
