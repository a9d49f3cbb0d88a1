"""The bodies of the names that owners give to models. Does not know what they lead to."""

from typing import Annotated

from pydantic import Field, StringConstraints

from serve.schemas.strict import StrictModel

GivenName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StoreId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class AliasCreate(StrictModel):
    """A name, and the model that it stands for."""

    name: GivenName
    model: ModelName


class AssistantCreate(StrictModel):
    """A name, and how a model answers from documents under it; what is not given has the configuration's default."""

    name: GivenName
    model: ModelName
    vector_store_ids: Annotated[list[StoreId], Field(min_length=1, max_length=16)]
    instructions: Annotated[str, StringConstraints(max_length=32_768)] | None = None
    k: Annotated[int, Field(ge=1, le=50)] | None = None
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    nothing_found: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    condense: bool | None = None
