"""What the files' routes take. Does not know where files lie."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.boundary import InvalidRequest

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data"]
FORM_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class QueryModel(BaseModel):
    """A route's query: unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")


class FileForm(QueryModel):
    """The fields beside an uploaded file."""

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=3600, le=2_592_000)


class FileListQuery(QueryModel):
    """Which files to list."""

    after: str | None = Field(None, max_length=256)
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(None, max_length=64)


def read_file_form(fields: dict[str, str]) -> FileForm:
    """Return a form's fields.

    Raises:
        InvalidRequest: One is missing or out of range.
    """
    try:
        form = FileForm.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise InvalidRequest(f"{name}: {fault['msg']}.", param=name) from error
    if (form.anchor is None) != (form.seconds is None):
        raise InvalidRequest("expires_after: wanted anchor and seconds together, found one.", param="expires_after")
    return form
