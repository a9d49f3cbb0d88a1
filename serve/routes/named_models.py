"""/v1/loam/aliases and /v1/loam/assistants: names that an owner gives to models. An owner's own only."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from serve.answering import AssistantConfig
from serve.catalog import Entry, EntryKind
from serve.gateway_state import CurrentGateway, Gateway
from serve.owners import CurrentCaller
from serve.routes.vector_stores import open_stores
from serve.schemas.named_models import AliasCreate, AssistantCreate
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/loam", tags=["named_models"], route_class=StrictRoute)

NamePath = Annotated[str, Path(max_length=256)]


@router.post("/aliases")
async def create_alias(body: AliasCreate, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Give a model a name, or move a name to it."""
    return shape_alias(await gateway.names.name_model(caller.owner, body.name, body.model), gateway)


@router.get("/aliases")
async def list_aliases(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """List an owner's."""
    given = gateway.names.list_names(caller.owner, EntryKind.ALIAS)
    return {"object": "list", "data": [shape_alias(entry, gateway) for entry in given]}


@router.delete("/aliases/{name}")
async def delete_alias(name: NamePath, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Take a name away; the model stays."""
    await gateway.names.take_back(caller.owner, name, EntryKind.ALIAS)
    return {"name": name, "object": "loam.alias.deleted", "deleted": True}


@router.post("/assistants")
async def create_assistant(body: AssistantCreate, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Make an assistant over one's own stores, or change it."""
    stores = await open_stores(gateway, body.vector_store_ids, caller.owner)
    settings = body.model_dump(exclude_none=True, exclude={"name", "vector_store_ids"})
    made = await gateway.names.make_assistant(caller.owner, body.name, AssistantConfig(**settings, stores=stores))
    return shape_assistant(made, gateway)


@router.get("/assistants")
async def list_assistants(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """List an owner's; those of the configuration stand in /v1/models."""
    given = gateway.names.list_names(caller.owner, EntryKind.ASSISTANT)
    return {"object": "list", "data": [shape_assistant(entry, gateway) for entry in given]}


@router.delete("/assistants/{name}")
async def delete_assistant(name: NamePath, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Take an assistant away; its model and its stores stay."""
    await gateway.names.take_back(caller.owner, name, EntryKind.ASSISTANT)
    return {"name": name, "object": "loam.assistant.deleted", "deleted": True}


def shape_alias(entry: Entry, gateway: Gateway) -> dict[str, Any]:
    """Return an alias as an object of the API."""
    return {
        "object": "loam.alias",
        "name": entry.name,
        "model": entry.target,
        "created_at": entry.created,
        "is_served": gateway.names.is_served(entry),
    }


def shape_assistant(entry: Entry, gateway: Gateway) -> dict[str, Any]:
    """Return an assistant as an object of the API."""
    if entry.assistant is None:
        raise TypeError(f"wanted an assistant, found {entry.kind.value} {entry.name}")
    config = entry.assistant.config
    return {
        **shape_alias(entry, gateway),
        "object": "loam.assistant",
        "vector_store_ids": config.stores,
        "instructions": config.instructions,
        "k": config.k,
        "min_score": config.min_score,
        "nothing_found": config.nothing_found,
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "condense": config.condense,
    }
