"""GET /v1/models and /v1/models/{id}: the catalogue in OpenAI's shape."""

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
