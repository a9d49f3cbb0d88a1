"""/v1/loam/feedback: what people said of answers, and the labelled questions that this makes. An owner's own only."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from serve.feedback import (
    Feedback,
    delete_feedback,
    export_questions,
    find_feedback,
    keep_feedback,
    list_feedback,
)
from serve.gateway_state import CurrentGateway
from serve.owners import CurrentCaller
from serve.routes.files import shape_list
from serve.routes.sources import read_own_passage
from serve.routes.vector_stores import find_store
from serve.schemas.feedback import FeedbackCreate, FeedbackListQuery, QuestionsQuery
from serve.schemas.strict import StrictRoute
from serve.windows import Window

router = APIRouter(prefix="/v1/loam/feedback", tags=["feedback"], route_class=StrictRoute)


@router.post("")
async def create_feedback(
    body: FeedbackCreate, request: Request, gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """Keep what somebody says of an answer; asked again, return it as it is kept."""
    archive = gateway.archive
    claim = await gateway.repeats.claim(request, caller.owner, await request.body())
    if claim.earlier is not None:
        made = bytes(claim.earlier.body).decode()
        return shape_feedback(await archive.run(find_feedback, archive.engine, caller.owner, made))
    try:
        gateway.catalog.get(body.model, caller.owner)
        chunk_ids = dict.fromkeys(body.chunk_ids or [])
        passages = await asyncio.gather(*(read_own_passage(one, gateway, caller) for one in chunk_ids))
        values = body.model_dump(exclude={"chunk_ids"})
        kept = await archive.run(keep_feedback, archive.engine, caller.owner, values, passages)
        await claim.settle(Response(kept.id))
    except BaseException:
        await claim.give_back()
        raise
    return shape_feedback(kept)


@router.get("")
async def list_own_feedback(
    query: Annotated[FeedbackListQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> dict[str, Any]:
    """List an owner's."""
    archive, window = gateway.archive, Window(query.after, None, query.limit, query.order == "asc")
    found, has_more = await archive.run(list_feedback, archive.engine, caller.owner, window, rating=query.rating)
    return shape_list([shape_feedback(one) for one in found], has_more=has_more)


@router.get("/questions", responses={200: {"content": {"application/x-ndjson": {}}}})
async def get_questions(
    query: Annotated[QuestionsQuery, Query()], gateway: CurrentGateway, caller: CurrentCaller
) -> Response:
    """Return them as labelled questions, one JSON object a line: what `action=tune` and evaluation read."""
    archive, store = gateway.archive, query.vector_store_id
    if store is not None:
        await find_store(gateway, store, caller.owner)
    rows = await archive.run(export_questions, archive.engine, caller.owner, store, query.use)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    headers = {"content-disposition": 'attachment; filename="questions.jsonl"', "x-content-type-options": "nosniff"}
    return Response(lines, media_type="application/x-ndjson", headers=headers)


@router.get("/{feedback_id}")
async def get_feedback(feedback_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Return one of them."""
    archive = gateway.archive
    return shape_feedback(await archive.run(find_feedback, archive.engine, caller.owner, feedback_id))


@router.delete("/{feedback_id}")
async def delete_own_feedback(feedback_id: str, gateway: CurrentGateway, caller: CurrentCaller) -> dict[str, Any]:
    """Remove one of them."""
    await gateway.archive.run(delete_feedback, gateway.archive.engine, caller.owner, feedback_id)
    return {"id": feedback_id, "object": "loam.feedback.deleted", "deleted": True}


def shape_feedback(one: Feedback) -> dict[str, Any]:
    """Return it as an object of the API."""
    return {"object": "loam.feedback", **asdict(one)}
