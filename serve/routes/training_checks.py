"""POST /v1/loam/training_checks: what a file of training data holds, before a job is made of it."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from retrieval.uploads import check_upload, find_upload
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, Gateway, run_for_client
from serve.owners import CurrentCaller
from serve.schemas.strict import StrictRoute
from serve.schemas.training_checks import TrainingCheck
from serve.training_preview import preview_upload

router = APIRouter(prefix="/v1/loam/training_checks", tags=["training_checks"], route_class=StrictRoute)


@router.post("")
async def check_training_file(
    body: TrainingCheck, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Tell faults by line, lengths in the model's tokens, and how a row reads."""
    archive = gateway.archive
    model = find_base(gateway, body.model, caller.owner)
    upload = await archive.run(find_upload, archive.engine, body.file_id, caller.owner)
    path = await archive.run(check_upload, archive.data, upload)
    async with request.app.state.previews:
        found = await run_for_client(request, preview_upload(path, upload.name, model))
    return {"object": "loam.training_check", "file_id": upload.id, **found}


def find_base(gateway: Gateway, name: str | None, owner: str) -> Path | None:
    """Return the folder of the base model behind a name; None where it is not on this machine.

    Args:
        gateway: This gateway.
        name: Any name that chats; None: the base model that is served.
        owner: Who asks.

    Raises:
        ModelNotFound: The owner may use nothing of that name.
    """
    bases = [entry.name for entry in gateway.catalog.list_entries(owner) if entry.kind is EntryKind.BASE]
    if name is not None:
        target = gateway.catalog.get(name, owner).target
        bases = [base for base in bases if base == target or target.startswith(f"ft:{base}:")]
    folders = [gateway.archive.data.model(base) for base in bases]
    return next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)
