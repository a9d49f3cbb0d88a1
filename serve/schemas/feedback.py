"""The body and the queries of the feedback's routes. Does not know what becomes of it."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from serve.schemas.files import QueryModel
from serve.schemas.strict import StrictModel

Words = Annotated[str, StringConstraints(max_length=4096)]
ChunkId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]


class FeedbackCreate(StrictModel):
    """What somebody says of an answer."""

    rating: Literal["up", "down"]
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    question: Annotated[str, StringConstraints(min_length=1, max_length=32_768)]
    answer: Annotated[str, StringConstraints(max_length=262_144)]
    comment: Words | None = None
    expected: Words | None = None
    chunk_ids: Annotated[list[ChunkId], Field(max_length=50)] | None = None


class FeedbackListQuery(QueryModel):
    """Which part of the list is wanted."""

    after: str | None = Field(None, max_length=256)
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    rating: Literal["up", "down"] | None = None


class QuestionsQuery(QueryModel):
    """Which labelled questions are wanted."""

    vector_store_id: str | None = Field(None, max_length=256)
    use: Literal["evaluation", "tuning"] = "evaluation"
