"""The runner of the queue outlives whatever its database says."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import ContractError
from core.layout import DataDir
from serve import job_runner
from serve.archive import Archive
from serve.job_command import JobsConfig
from serve.job_runner import JobRunner
from serve.jobs import Job, insert_job, make_job_id, read_job, take_waiting

BASE = "tiny-base"


@pytest.mark.parametrize("error", [ContractError("the database is damaged"), RuntimeError("nobody foresaw this")])
def test_jobs_go_on_after_a_fault_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    faults = {"validating_files": [error], "queued": [error]}

    def take_with_faults(engine: Any, status: str, model: str) -> Job | None:
        if faults[status]:
            raise faults[status].pop()
        return take_waiting(engine, status, model)

    async def run() -> Job:
        archive = Archive(DataDir(tmp_path), 1000)
        models: Any = SimpleNamespace(base=SimpleNamespace(name=BASE))
        engine: Any = None  # no job comes as far
        runner = JobRunner(archive, engine, models, JobsConfig(), "cpu")
        job = Job(make_job_id(), "me", BASE, None, 0, "file-gone", None, "supervised", {}, {}, None)
        insert_job(archive.engine, job, 1)
        await runner.start()
        try:
            async with asyncio.timeout(20):
                while not (found := read_job(archive.engine, job.id)).is_final:  # noqa: ASYNC110  (the row is all there is)
                    await asyncio.sleep(0.01)
        finally:
            await runner.stop()
            archive.close()
        assert not any(faults.values())
        return found

    monkeypatch.setattr(job_runner, "take_waiting", take_with_faults)
    monkeypatch.setattr(job_runner, "RETRY_S", 0.05)
    job = asyncio.run(run())
    assert (job.status, (job.error or {})["param"]) == ("failed", "training_file")
