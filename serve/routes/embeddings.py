"""POST /v1/embeddings: the embedder of the stores, in OpenAI's shape."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from core.errors import ModelNotFound
from serve.boundary import InvalidRequest
from serve.catalog import EntryKind
from serve.gateway_state import CurrentGateway, run_for_client
from serve.owners import CurrentCaller
from serve.schemas.embeddings import EmbeddingRequest
from serve.schemas.strict import StrictRoute

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"], route_class=StrictRoute)


@router.post("")
async def create_embeddings(
    body: EmbeddingRequest, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Embed texts as unit vectors."""
    entry = gateway.catalog.get(body.model, caller.owner)
    if entry.kind is not EntryKind.EMBEDDER:
        known = gateway.library.embedder_name
        raise ModelNotFound(f"The model {body.model!r} does not embed texts. This one does: {known}.", param="model")
    texts = body.texts()
    vectors = await run_for_client(request, gateway.library.embed(texts))  # (texts, dimension)
    if body.dimensions not in (None, vectors.shape[1]):
        raise InvalidRequest(
            f"dimensions: {entry.name} has {vectors.shape[1]} and cannot be shortened, found {body.dimensions}.",
            param="dimensions",
        )
    tokens = sum(await gateway.library.count_tokens(texts))
    data = [
        {"object": "embedding", "index": index, "embedding": encode_vector(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": entry.name, "usage": usage})


def encode_vector(vector: npt.NDArray[np.float32], encoding: str) -> Any:
    """Return a vector as numbers, or as base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
