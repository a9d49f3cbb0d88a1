"""/v1/models: the catalogue in OpenAI's shape, and taking fine-tuned models away."""

from typing import Any

from fastapi import APIRouter

from serve.catalog import Entry
from serve.gateway_state import CurrentGateway
from serve.owners import CurrentCaller

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """List every name that `model` may hold in a request of this owner's."""
    return {"object": "list", "data": [shape_model(entry) for entry in gateway.catalog.list_entries(caller.owner)]}


@router.get("/{name:path}")
async def get_model(name: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Return one of them."""
    return shape_model(gateway.catalog.get(name, caller.owner))


@router.delete("/{name:path}")
async def delete_model(name: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Take a fine-tuned model away for good, once the requests that use it have ended."""
    await gateway.jobs.models.retire(name, caller.owner)
    return {"id": name, "object": "model", "deleted": True}


def shape_model(entry: Entry) -> dict[str, Any]:
    """Return an entry as OpenAI's model object, with two fields of ours: what it is, and what it stands for."""
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": entry.owner,
        "kind": entry.kind.value,
        "target": entry.target,
    }
