"""The body of a new key. Does not know how keys are kept."""

from typing import Annotated

from pydantic import StringConstraints

from serve.schemas.strict import StrictModel


class KeyCreate(StrictModel):
    """Whose key it will be."""

    owner: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    is_admin: bool = False
