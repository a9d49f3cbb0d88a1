"""/v1/loam/status and /v1/loam/doctor: how this gateway and its machine are, for administrators."""

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from fastapi import APIRouter, Query, Request
from sqlalchemy import text

from core.config import CONF_DIR
from core.layout import DataDir
from retrieval.database import read_transaction
from serve.archive import Archive
from serve.boundary import DoctorUnfinished
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, run_for_client
from serve.owners import CurrentCaller
from serve.routes.api_keys import check_admin
from serve.schemas.files import QueryModel

router = APIRouter(prefix="/v1/loam", tags=["operations"])

DOCTOR = CONF_DIR.parent / "scripts" / "doctor.py"
DOCTOR_TIMEOUT_S = 540.0


class DoctorQuery(QueryModel):
    """What is looked at."""

    checks: Literal["data", "machine"] = "data"


@router.get("/status")
async def get_status(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Tell the engine's state, what is served, what waits, and what memory and disk are left."""
    check_admin(caller)
    entries = gateway.catalog.entries.values()
    names = {kind.value: [entry.name for entry in entries if entry.kind is kind] for kind in EntryKind}
    return {
        "object": "loam.status",
        "time": int(time.time()),
        "engine": {"state": gateway.engine.state.value, "max_model_len": gateway.engine.max_model_len},
        "served": names,
        **await gateway.archive.run(read_figures, gateway.archive),
    }


def read_figures(archive: Archive) -> dict[str, Any]:
    """Return what the database, the memory and the disk say."""
    counting = text("SELECT status, COUNT(*) FROM vector_store_files GROUP BY status")
    with read_transaction(archive.engine) as connection:
        files = {status: int(count) for status, count in connection.execute(counting)}
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(archive.data.root)
    process = psutil.Process()
    below = process.children(recursive=True)
    return {
        "files": {"waiting": files.get("in_progress", 0), "failed": files.get("failed", 0)},
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "gateway_bytes": process.memory_info().rss,
            "children_bytes": sum(measure_process(child) for child in below),
        },
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free, "used_by": measure_folders(archive.data)},
        "started_at": int(process.create_time()),
    }


def measure_process(process: psutil.Process) -> int:
    """Return the memory of a process; 0 for one that has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def measure_folders(data: DataDir) -> dict[str, int]:
    """Return how many bytes each part of the data directory takes."""
    parts = {"models": data.models, "runs": data.runs, "files": data.files, "indexes": data.indexes}
    sizes = {name: measure_folder(folder) for name, folder in parts.items()}
    return {**sizes, "database": data.database.stat().st_size if data.database.is_file() else 0}


def measure_folder(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


@router.post("/doctor")
async def run_doctor(
    query: Annotated[DoctorQuery, Query()], request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Look at the data directory's every byte or at the machine, as `python scripts/doctor.py` does, in a process."""
    check_admin(caller)
    return await run_for_client(request, examine(gateway.archive.data.root, query.checks))


async def examine(root: Path, checks: str) -> dict[str, Any]:
    """Run the doctor.

    Args:
        root: The data directory.
        checks: `data`, or `machine` (whose own port is this gateway's, so that none is tried).

    Raises:
        DoctorUnfinished: It did not end in its time, or said nothing.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(DOCTOR), str(root), "output=json", f"checks={checks}", "port=0",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DOCTOR_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise DoctorUnfinished(
            f"wanted the doctor's findings within {DOCTOR_TIMEOUT_S:g} s, found it at work still; it was ended. Run it "
            "at the machine, where it has all the time it needs: python scripts/doctor.py DATA_DIR"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise DoctorUnfinished(
            f"wanted the doctor's findings, found that it ended with {process.returncode} and said nothing that can be "
            "read. Run it at the machine: python scripts/doctor.py DATA_DIR"
        ) from error
    return {"object": "loam.diagnosis", "ok": found["ok"], "facts": found["facts"], "findings": found["findings"]}
