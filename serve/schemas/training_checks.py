"""The body of a check of training data. Does not know what is checked."""

from typing import Annotated

from pydantic import StringConstraints

from serve.schemas.strict import StrictModel
from serve.schemas.vector_stores import FileId


class TrainingCheck(StrictModel):
    """Which file, and whose tokens are counted."""

    file_id: FileId
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
