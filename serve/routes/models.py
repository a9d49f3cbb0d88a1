"""GET /v1/models and /v1/models/{id}: the catalogue in OpenAI's shape."""

from typing import Any

from fastapi import APIRouter

from serve.catalog import Entry
from serve.gateway_state import CurrentGateway

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(gateway: CurrentGateway) -> dict[str, Any]:
    """List every name that a request's `model` may hold."""
    return {"object": "list", "data": [shape_model(entry) for entry in gateway.catalog.entries.values()]}


@router.get("/{name:path}")
async def get_model(name: str, gateway: CurrentGateway) -> dict[str, Any]:
    """Return one of them."""
    return shape_model(gateway.catalog.get(name))


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
