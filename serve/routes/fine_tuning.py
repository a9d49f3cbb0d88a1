"""/v1/fine_tuning/jobs: created, watched, cancelled; an owner's own only."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from core.errors import InputError, NotFound
from retrieval.uploads import Upload, find_upload
from serve.boundary import InvalidRequest
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, Gateway
from serve.job_command import read_options, read_profile, settle_hyperparameters
from serve.job_events import Figures, read_event_page
from serve.jobs import Job, find_job, insert_job, list_jobs, make_job_id
from serve.owners import Caller, CurrentCaller
from serve.routes.files import shape_list
from serve.schemas.fine_tuning import CheckpointQuery, JobCreate, JobListQuery, PageQuery
from serve.schemas.strict import StrictRoute
from serve.tuned_models import TunedModel

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine_tuning"], route_class=StrictRoute)

PURPOSE = "fine-tune"


@router.post("")
async def create_job(body: JobCreate, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Queue a job; its files are checked before anything else happens."""
    runner = gateway.jobs
    job = await read_job(body, gateway, caller)
    await gateway.archive.run(insert_job, gateway.archive.engine, job, runner.config.max_unfinished)
    runner.wake()
    return shape_job(job, gateway)


async def read_job(body: JobCreate, gateway: Gateway, caller: Caller) -> Job:
    """Return the job that a request describes; it is not kept yet.

    Raises:
        InvalidRequest: Its model is no base model.
        NotFound: A file does not exist, or is another's.
        InputError: A file was uploaded for something else.
        ConfigError: A note of `metadata` is no good as an option.
    """
    runner = gateway.jobs
    entry = gateway.catalog.get(body.model, caller.owner)
    if entry.kind is not EntryKind.BASE:
        raise InvalidRequest(f"model: wanted the base model that is served, found {body.model!r}.", param="model")
    await find_training_file(gateway, body.training_file, caller.owner, "training_file")
    if body.validation_file is not None:
        await find_training_file(gateway, body.validation_file, caller.owner, "validation_file")
    profile = read_profile(runner.config, body.kind)
    return Job(
        id=make_job_id(),
        owner=caller.owner,
        model=entry.name,
        suffix=body.suffix,
        seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
        training_file=body.training_file,
        validation_file=body.validation_file,
        method=body.kind,
        hyperparameters=settle_hyperparameters(body.read_hyperparameters(), profile, body.kind),
        options=read_options(body.metadata, runner.models.max_rank),
        metadata=body.metadata,
    )


async def find_training_file(gateway: Gateway, file_id: str, owner: str, field: str) -> Upload:
    """Return an owner's file that was uploaded for training.

    Raises:
        NotFound: There is none, or it is another's.
        InputError: It was uploaded for something else.
    """
    try:
        upload = await gateway.archive.run(find_upload, gateway.archive.engine, file_id, owner)
    except NotFound as error:
        raise NotFound(error.message, param=field) from error
    if upload.purpose != PURPOSE:
        raise InputError(
            f"{field}: wanted a file of the purpose {PURPOSE}, found {upload.purpose}. Upload it again.", param=field
        )
    return upload


@router.get("")
async def list_own_jobs(
    query: Annotated[JobListQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List an owner's jobs, the newest first."""
    jobs, has_more = await gateway.archive.run(
        list_jobs,
        gateway.archive.engine,
        caller.owner,
        after=query.after,
        limit=query.limit,
        metadata=query.notes,
        has_none=query.metadata is not None,
    )
    return shape_list([shape_job(job, gateway) for job in jobs], has_more=has_more)


@router.get("/{fine_tuning_job_id}")
async def get_job(fine_tuning_job_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Return one of them."""
    return shape_job(await find(gateway, fine_tuning_job_id, caller.owner), gateway)


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_job(fine_tuning_job_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Cancel a job; nothing of it runs any more when this is answered."""
    return shape_job(await gateway.jobs.cancel(fine_tuning_job_id, caller.owner), gateway)


@router.post("/{fine_tuning_job_id}/pause")
async def pause_job(fine_tuning_job_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Let a job wait, with what it has learned saved."""
    return shape_job(await gateway.jobs.set_paused(fine_tuning_job_id, caller.owner, is_paused=True), gateway)


@router.post("/{fine_tuning_job_id}/resume")
async def resume_job(fine_tuning_job_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Let a paused job go on."""
    return shape_job(await gateway.jobs.set_paused(fine_tuning_job_id, caller.owner, is_paused=False), gateway)


@router.get("/{fine_tuning_job_id}/events")
async def list_events(
    fine_tuning_job_id: str, query: Annotated[PageQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List what happened to a job, the newest first."""
    job = await find(gateway, fine_tuning_job_id, caller.owner)
    archive, path = gateway.archive, gateway.archive.data.run(job.id) / "events.jsonl"
    listing = archive.run(read_event_page, archive.engine, job.id, path, after=query.after, limit=query.limit)
    events, has_more = await listing
    return shape_list(events, has_more=has_more)


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_checkpoints(
    fine_tuning_job_id: str, query: Annotated[CheckpointQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List a finished job's checkpoints, each a model of its own, the newest first."""
    job = await find(gateway, fine_tuning_job_id, caller.owner)
    models = await gateway.archive.run(gateway.jobs.models.list_checkpoints, job.id, caller.owner)
    figures = await gateway.archive.run(Figures.read, gateway.archive.data.run(job.id) / "events.jsonl")
    return cut_page([shape_checkpoint(model, figures) for model in models], query.after, query.limit)


async def find(gateway: Gateway, job_id: str, owner: str) -> Job:
    """Return an owner's job.

    Raises:
        NotFound: There is none, or it is another's.
    """
    return await gateway.archive.run(find_job, gateway.archive.engine, job_id, owner)


def cut_page(data: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Return one page of a list that is there as a whole.

    Raises:
        NotFound: Nothing in it has the id `after`.
    """
    ids = [one["id"] for one in data]
    if after is not None and after not in ids:
        raise NotFound(f"after: {after!r} is not in this list.", param="after")
    first = 0 if after is None else ids.index(after) + 1
    return shape_list(list(data[first : first + limit]), has_more=first + limit < len(data))


def shape_job(job: Job, gateway: Gateway) -> dict[str, Any]:
    """Return a job as OpenAI's object."""
    progress = gateway.jobs.progress.get(job.id) if job.status == "running" else None
    common = {name: value for name, value in job.hyperparameters.items() if name != "beta"}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.owner,
        "status": job.status,
        "hyperparameters": common,
        "method": {"type": job.method, job.method: {"hyperparameters": job.hyperparameters}},
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [job.result_file] if job.result_file else [],
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "error": job.error,
        "estimated_finish": progress.estimate_finish() if progress else None,
        "integrations": [],
        "metadata": job.metadata,
    }


def shape_checkpoint(model: TunedModel, figures: Figures) -> dict[str, Any]:
    """Return a checkpoint as OpenAI's object."""
    step = model.step or 0
    return {
        "id": f"{model.job_id.replace('ftjob', 'ftckpt', 1)}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(figures.saved_at.get(step, model.created_at)),
        "fine_tuned_model_checkpoint": model.name,
        "fine_tuning_job_id": model.job_id,
        "step_number": step,
        "metrics": figures.shape_metrics(step),
    }
