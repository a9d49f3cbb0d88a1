"""What a search that tells why takes, and a passage in its document. Does not know how anything is found."""

from typing import Annotated, Any

from pydantic import Field

from serve.schemas.files import QueryModel
from serve.schemas.strict import StrictModel
from serve.schemas.vector_stores import FileId, QueryText


class StoresSearch(StrictModel):
    """A search in some stores; `filters` is read by retrieval, which names every fault."""

    vector_store_ids: Annotated[list[FileId], Field(min_length=1, max_length=16)]
    query: QueryText
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None


class PassageQuery(QueryModel):
    """How much of the document is wanted, in characters before and behind the passage."""

    around: int = Field(4000, ge=0, le=1_000_000)
