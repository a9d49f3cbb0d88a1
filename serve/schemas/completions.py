"""The body of POST /v1/completions, OpenAI's older call: which fields are served, ignored and refused.

docs/api.md says the same in words. Does not know what they do.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from serve.schemas.relayed import MAX_TEXT, RelayedRequest

MAX_CHOICES = 32
"""Prompts times `n` of one request; LangChain sends 20 prompts at a time."""
MAX_PROMPT_TOKENS = 1_048_576
"""Of one prompt in token ids: past any context, so a sign of a mistake."""

PromptText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]


def pick_by_kind(value: Any) -> str:
    """Tell what a prompt is from its beginning, so that a fault is named in what was sent."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "token_lists" if isinstance(first, list) else "token_ids"


Prompt = Annotated[
    Annotated[PromptText, Tag("text")]
    | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_CHOICES), Tag("texts")]
    | Annotated[TokenIds, Tag("token_ids")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES), Tag("token_lists")],
    Discriminator(pick_by_kind),
]


class CompletionRequest(RelayedRequest):
    """A completion request."""

    ignored: ClassVar[frozenset[str]] = frozenset({"user", "best_of"})

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, le=16)

    @model_validator(mode="after")
    def check_together(self) -> "CompletionRequest":
        """Refuse fields that contradict each other, and what would be too much together."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of: wanted as many as n, {self.n or 1}, found {self.best_of}")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: log-probabilities are told of the answer alone; leave out echo or logprobs")
        choices = self.count_prompts() * (self.n or 1)
        if choices > MAX_CHOICES:
            raise ValueError(f"prompt: wanted at most {MAX_CHOICES} prompts times n, found {choices}")
        return self

    def count_prompts(self) -> int:
        """Return how many prompts there are."""
        return len(self.prompt) if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else 1
