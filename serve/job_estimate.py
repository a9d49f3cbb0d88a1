"""What a fine-tuning job would take: asked of the trainer itself, in a process of its own, before there is a job.

    python train/run.py <the job's own options> check_only=true output=json

so that the figures are those of the run that would start. Does not know HTTP, nor how anything is estimated.
"""

import asyncio
import dataclasses
import json
import os
import signal
import tempfile
from contextlib import suppress
from typing import Any

from core.errors import ConfigError, InputError, TrainingDataError
from core.layout import DataDir
from serve.job_command import JobsConfig, build_arguments, build_command, hide_paths, read_profile
from serve.jobs import Job

TIMEOUT_S = 300.0
ANY_ROWS = 1
"""In place of the file's number of rows, which decides when a run saves and nothing that is estimated."""


async def estimate_job(
    job: Job, config: JobsConfig, data: DataDir, hardware: str, program: tuple[str, ...]
) -> dict[str, Any]:
    """Return what train/estimate.py says of a job's run.

    Args:
        job: What would be made; it has no row.
        config: The operator's settings of jobs.
        data: Where the files lie.
        hardware: Name of the hardware profile.
        program: What trains.

    Raises:
        TrainingDataError: The files cannot be learned from; every faulty line is named.
        ConfigError: The settings stand against each other.
        InputError: It took too long.
    """
    arguments, _ = build_arguments(job, config, read_profile(config, job.method), data, hardware, ANY_ROWS)
    command = build_command(dataclasses.replace(job, arguments=arguments), data, program)
    environment = {name: value for name, value in os.environ.items() if name != "LOAM_API_KEY"}
    if config.cards is not None:
        environment["CUDA_VISIBLE_DEVICES"] = config.cards
    command += ["check_only=true", "output=json"]
    with tempfile.TemporaryDirectory(prefix="loam-estimate-") as scratch:
        code, output, words = await _run(command, {**environment, "TMPDIR": scratch})
    if code:
        message = hide_paths(words.rpartition("error: ")[2].strip() or f"The trainer ended with {code}.", data.root)
        kind = TrainingDataError if code == TrainingDataError.exit_code else ConfigError
        raise kind(message[:4000], param="training_file" if kind is TrainingDataError else None)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


async def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a program to its end, or take it down with all that it started; return exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, words = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise InputError(f"The estimate took longer than {TIMEOUT_S:.0f} s. Start the job without it.") from error
        raise
    return process.returncode or 0, output.decode(errors="replace"), words.decode(errors="replace")
