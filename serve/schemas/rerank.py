"""The body of POST /v1/rerank, in the shape that Jina's and Cohere's clients send. Does not know the reranker."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from serve.schemas.embeddings import InputText
from serve.schemas.relayed import ModelName
from serve.schemas.strict import StrictModel

MAX_DOCUMENTS = 1000
"""As at Cohere."""


class TextDocument(StrictModel):
    """A document with its text in a field."""

    text: InputText


def pick_document(value: object) -> str:
    """Tell a text from an object, so that a fault is named in the one that was sent."""
    return "text" if isinstance(value, str) else "object"


Document = Annotated[
    Annotated[InputText, Tag("text")] | Annotated[TextDocument, Tag("object")], Discriminator(pick_document)
]


class RerankRequest(StrictModel):
    """A query and what may answer it."""

    model: ModelName
    query: Annotated[InputText, Field(max_length=32_768)]
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: int | None = Field(None, ge=1, le=MAX_DOCUMENTS)
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        """Return the documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]
