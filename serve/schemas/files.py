"""What the files' routes take. Does not know where files lie."""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import UnsupportedFile
from serve.boundary import InvalidRequest

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
LINES_FOR = {
    "fine-tune": ", as docs/training-data.md shows. On the gateway's machine, python train/run.py data.train=FILE "
    "reads CSV and Parquet as they are.",
    "evals": ".",
}
"""Purposes whose files are JSON lines, with how the advice ends."""
FORM_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
TABLES = {".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet", ".pq": "Parquet", ".xlsx": "Excel", ".xls": "Excel"}
"""Formats of tables, by the ending of a file's name."""


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


def refuse_table(purpose: str, name: str) -> None:
    """Refuse training data, and questions to evaluate by, whose name says that it is a table: JSON lines, as at OpenAI.

    Args:
        purpose: What the file is uploaded for.
        name: As the client calls it.

    Raises:
        UnsupportedFile: It is one.
    """
    found = TABLES.get(PurePosixPath(name).suffix.lower())
    if found is None or purpose not in LINES_FOR:
        return
    raise UnsupportedFile(
        f"file: wanted JSON lines (.jsonl) for {purpose}, found {found} ({name}). Write each row as one JSON object "
        f"on a line of its own{LINES_FOR[purpose]}",
        param="file",
    )
