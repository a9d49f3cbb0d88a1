"""/v1/loam/reports: evaluations and verdicts as they were written, for reading only."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.gateway_state import CurrentGateway
from serve.owners import CurrentCaller
from serve.reports import find_file, list_reports

router = APIRouter(prefix="/v1/loam/reports", tags=["reports"])

HEADERS = {"content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff"}
"""A page among them runs nothing, whoever wrote it."""


@router.get("")
async def list_own_reports(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """List them, newest first."""
    found = await gateway.archive.run(list_reports, gateway.archive.data, caller)
    return {"object": "list", "data": [{"object": "loam.report", **asdict(report)} for report in found]}


@router.get("/{report}/{file}")
async def get_report_file(report: str, file: str, gateway: CurrentGateway, caller: CurrentCaller) -> FileResponse:
    """Return one file of a report."""
    path = await gateway.archive.run(find_file, gateway.archive.data, caller, report, file)
    return FileResponse(path, headers=HEADERS, filename=file)
