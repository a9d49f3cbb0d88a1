"""GET /health: is the gateway alive, and is the engine ready? Open without a key, so it tells nothing more."""

from fastapi import APIRouter, Response

from serve.gateway_state import CurrentGateway
from serve.model_server import EngineState

router = APIRouter(tags=["health"])


@router.get("/health")
async def get_health(gateway: CurrentGateway, response: Response) -> dict[str, str]:
    """Tell whether requests can be answered: 200 when the engine is ready, else 503 with Retry-After."""
    state = gateway.engine.state
    if state is not EngineState.READY:
        response.status_code = 503
        response.headers["retry-after"] = str(gateway.engine.expected_wait_s())
    return {"status": "ok" if state is EngineState.READY else "unavailable", "engine": state.value}
