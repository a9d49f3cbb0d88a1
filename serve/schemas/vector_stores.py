"""The bodies and queries of the vector stores' routes. Does not know what they do."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from retrieval.config import ChunkingConfig
from serve.schemas.files import QueryModel
from serve.schemas.strict import StrictModel, pick_by_kind

MAX_FILES = 2000
"""Of one request, as at OpenAI."""

Name = Annotated[str, StringConstraints(max_length=256)]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
Attributes = Annotated[dict[str, str | int | float | bool], Field(max_length=16)]


class ExpiresAfter(StrictModel):
    """How long a store lives without being used."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class AutoChunking(StrictModel):
    """As the gateway is configured."""

    type: Literal["auto"]


class StaticSizes(StrictModel):
    """Sizes in the embedder's tokens."""

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def check_overlap(self) -> "StaticSizes":
        """Refuse an overlap of more than half."""
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens: wanted at most half of max_chunk_size_tokens")
        return self


class StaticChunking(StrictModel):
    """As the request says."""

    type: Literal["static"]
    static: StaticSizes


Chunking = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]


def read_chunking(wanted: AutoChunking | StaticChunking | None, configured: ChunkingConfig) -> ChunkingConfig:
    """Return how documents are to be cut."""
    if isinstance(wanted, StaticChunking):
        return ChunkingConfig(wanted.static.max_chunk_size_tokens, wanted.static.chunk_overlap_tokens)
    return configured


class VectorStoreCreate(StrictModel):
    """A new store."""

    name: Name | None = None
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    file_ids: Annotated[list[FileId], Field(max_length=MAX_FILES)] | None = None
    chunking_strategy: Chunking | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None


class VectorStoreUpdate(StrictModel):
    """What changes; null takes a value away."""

    name: Name | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None


class FileAttach(StrictModel):
    """A file for a store."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class BatchCreate(StrictModel):
    """Files for a store: `file_ids` with what holds for all, or `files` each with its own alone."""

    file_ids: Annotated[list[FileId], Field(min_length=1, max_length=MAX_FILES)] | None = None
    files: Annotated[list[FileAttach], Field(min_length=1, max_length=MAX_FILES)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None

    @model_validator(mode="after")
    def check_one(self) -> "BatchCreate":
        """Refuse both or none."""
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("wanted either file_ids or files")
        return self

    def list_files(self) -> list[FileAttach]:
        """Return the files, each with what holds for it."""
        if self.files is not None:
            return self.files
        return [
            FileAttach(file_id=file_id, attributes=self.attributes, chunking_strategy=self.chunking_strategy)
            for file_id in self.file_ids or []
        ]


class AttributesUpdate(StrictModel):
    """A file's attributes, in place of those that it had."""

    attributes: Attributes | None


class RankingOptions(StrictModel):
    """How hits are chosen."""

    ranker: Literal["none", "auto", "default-2024-11-15"] | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)


QueryText = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]
QueryTexts = Annotated[list[QueryText], Field(min_length=1, max_length=16)]
Query = Annotated[Annotated[QueryText, Tag("text")] | Annotated[QueryTexts, Tag("list")], Discriminator(pick_by_kind)]


class SearchRequest(StrictModel):
    """A search; `filters` is read by retrieval, which names every fault."""

    query: Query
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None

    def queries(self) -> list[str]:
        """Return one or more queries as a list."""
        return [self.query] if isinstance(self.query, str) else self.query


class ListQuery(QueryModel):
    """Which part of a list is wanted."""

    after: str | None = Field(None, max_length=256)
    before: str | None = Field(None, max_length=256)
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


class FileListQuery(ListQuery):
    """Which of a store's files are wanted."""

    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None
