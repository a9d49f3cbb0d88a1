"""What the bodies of chats and completions share: the model, the stream and how is sampled, with their ranges.

Served fields reach vLLM; ignored ones are OpenAI's fields that mean nothing on one's own machine: they are checked and
dropped; every other field is refused by name. docs/api.md says the same in words. Does not know the prompt.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from serve.schemas.strict import StrictModel

INT64_MAX = 2**63 - 1
MAX_TEXT = 4 * 2**20
"""Characters of one message or prompt: past any context, so a sign of a mistake."""

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LogitBias = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=300),
]


class StreamOptions(StrictModel):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, exclude=True)


class RelayedRequest(StrictModel):
    """A request that is passed on to vLLM, without its prompt."""

    ignored: ClassVar[frozenset[str]] = frozenset({"user"})
    """Fields that are checked, then dropped."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_048_576)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=16)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        """Refuse options of a stream without a stream."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    def list_served_fields(self) -> set[str]:
        """Return the names of the fields that the client set and that are not ignored."""
        return {name for name in self.model_fields_set if getattr(self, name) is not None} - self.ignored

    def to_upstream(self, model: str) -> bytes:
        """Return the body that goes to vLLM: served fields that the client set, and the engine's name of the model.

        A stream always ends with its usage, for the gateway's own counting; the relay hides it from who did not ask.
        """
        options: dict[str, Any] = {"stream_options": StreamOptions(include_usage=True)} if self.stream else {}
        return self.model_copy(update={"model": model, **options}).model_dump_json(
            exclude_none=True, by_alias=True, exclude=set(self.ignored)
        ).encode()  # fmt: skip
