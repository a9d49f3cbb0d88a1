"""POST /v1/loam/training_estimates: what a fine-tuning job would take in memory and time, before it is made."""

from typing import Any

from fastapi import APIRouter, Request

from serve.gateway_state import CurrentGateway, run_for_client
from serve.job_command import GpuUse
from serve.owners import CurrentCaller
from serve.routes.fine_tuning import read_job
from serve.schemas.fine_tuning import JobCreate
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/loam/training_estimates", tags=["training_estimates"], route_class=StrictRoute)


@router.post("")
async def estimate_training(
    body: JobCreate, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Estimate a job from the body that would make it; nothing is kept."""
    job = await read_job(body, gateway, caller)
    async with request.app.state.previews:
        found = await run_for_client(request, gateway.jobs.estimate(job))
    return {
        "object": "loam.training_estimate",
        "hyperparameters": job.hyperparameters,
        "stops_engine": gateway.jobs.config.gpu is GpuUse.stop,
        **found,
    }
