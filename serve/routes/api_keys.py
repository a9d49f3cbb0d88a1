"""/v1/loam/keys: API keys, for administrators."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from serve.boundary import AdminOnly
from serve.gateway_state import CurrentGateway
from serve.keys import Key, create_key, list_keys, revoke_key
from serve.owners import Caller, CurrentCaller
from serve.schemas.keys import KeyCreate
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/loam/keys", tags=["keys"], route_class=StrictRoute)


@router.post("")
async def create_owners_key(body: KeyCreate, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Make a key; `token` is shown this once and kept nowhere."""
    check_admin(caller)
    archive = gateway.archive
    key, token = await archive.run(create_key, archive.engine, body.owner, is_admin=body.is_admin)
    return {**shape_key(key), "token": token}


@router.get("")
async def list_all_keys(gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """List every key that was ever made, the oldest first."""
    check_admin(caller)
    keys = await gateway.archive.run(list_keys, gateway.archive.engine)
    return {"object": "list", "data": [shape_key(key) for key in keys]}


@router.delete("/{key_id}")
async def revoke_owners_key(key_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Make a key worthless from the next request on; its row stays."""
    check_admin(caller)
    return shape_key(await gateway.archive.run(revoke_key, gateway.archive.engine, key_id))


def check_admin(caller: Caller) -> None:
    """Let administrators through only.

    Raises:
        AdminOnly: The caller is none.
    """
    if not caller.is_admin:
        raise AdminOnly("Wanted an administrator's key (scripts/keys.py create --admin), found another.")


def shape_key(key: Key) -> dict[str, Any]:
    """Return what is kept of a key."""
    return {"object": "loam.key", **asdict(key)}
