"""The body of POST /v1/embeddings. Does not know the embedder."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag

from serve.schemas.relayed import ModelName
from serve.schemas.strict import StrictModel, pick_by_kind

MAX_INPUTS = 2048
"""As at OpenAI."""

InputText = Annotated[str, StringConstraints(min_length=1, max_length=131_072)]


def refuse_token_ids(texts: list[Any]) -> list[Any]:
    """Say why what LangChain sends of itself is not taken.

    Raises:
        ValueError: There are token ids in place of texts.
    """
    if texts and isinstance(texts[0], int | list):
        raise ValueError(
            "wanted texts, found token ids, which are another model's. Send the texts themselves (LangChain does with "
            "check_embedding_ctx_length=False)"
        )
    return texts


InputTexts = Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS), BeforeValidator(refuse_token_ids)]
Input = Annotated[Annotated[InputText, Tag("text")] | Annotated[InputTexts, Tag("list")], Discriminator(pick_by_kind)]


class EmbeddingRequest(StrictModel):
    """Texts to embed; lists of token ids are refused, because they are another model's tokens."""

    model: ModelName
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=65_536)
    user: str | None = Field(None, max_length=512)

    def texts(self) -> list[str]:
        """Return the texts, one or many, as a list."""
        return [self.input] if isinstance(self.input, str) else self.input
