"""The body of POST /v1/embeddings. Does not know the embedder."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from serve.schemas.relayed import ModelName
from serve.schemas.strict import StrictModel

MAX_INPUTS = 2048
"""As at OpenAI."""

InputText = Annotated[str, StringConstraints(min_length=1, max_length=131_072)]


class EmbeddingRequest(StrictModel):
    """Texts to embed; lists of token ids are refused, because they are another model's tokens."""

    model: ModelName
    input: InputText | Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=65_536)
    user: str | None = Field(None, max_length=512)

    def texts(self) -> list[str]:
        """Return the texts, one or many, as a list."""
        return [self.input] if isinstance(self.input, str) else self.input
