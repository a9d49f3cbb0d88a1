"""GET /metrics: what the gateway counts, and what every vLLM server says of itself, for Prometheus."""

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from core.errors import EngineUnavailable
from serve.attached_files import read_waiting
from serve.gateway_state import CurrentGateway
from serve.jobs import count_jobs
from serve.model_server import ModelServer
from serve.owners import CurrentCaller
from serve.routes.api_keys import check_admin

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(gateway: CurrentGateway, caller: CurrentCaller) -> Response:
    """Return all metrics in Prometheus' text format; for operators, since they tell of every owner's requests."""
    check_admin(caller)
    servers = gateway.engine.servers
    texts = await asyncio.gather(*(read_own_metrics(server) for server in servers))
    metrics = gateway.metrics
    for server in servers:
        metrics.engine_ready.labels(server.address).set(server.is_ready)
        metrics.engine_in_flight.labels(server.address).set(server.in_flight)
    metrics.waiting_files.set(await gateway.archive.run(read_waiting, gateway.archive.engine))
    for status, jobs in (await gateway.archive.run(count_jobs, gateway.archive.engine)).items():
        metrics.jobs.labels(status).set(jobs)
    of_servers = {server.address: text for server, text in zip(servers, texts, strict=True) if text}
    return Response(await asyncio.to_thread(metrics.render, of_servers), media_type=CONTENT_TYPE_LATEST)


async def read_own_metrics(server: ModelServer) -> str:
    """Return what a server says of itself; nothing while it cannot be asked."""
    if not server.is_ready:
        return ""
    try:
        return await server.read_metrics()
    except EngineUnavailable:
        return ""
