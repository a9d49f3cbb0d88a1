"""GET /v1/loam/account: whose key it is that asks."""

from typing import Any

from fastapi import APIRouter

from serve.owners import CurrentCaller

router = APIRouter(prefix="/v1/loam/account", tags=["account"])


@router.get("")
async def get_account(caller: CurrentCaller) -> dict[str, Any]:
    """Tell whose objects this key sees, and whether it opens the operators' routes."""
    return {
        "object": "loam.account",
        "owner": caller.owner,
        "is_admin": caller.is_admin,
        "key_id": caller.key_id,
    }
