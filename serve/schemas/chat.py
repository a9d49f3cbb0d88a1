"""The body of POST /v1/chat/completions: which fields are served, ignored and refused, with their ranges.

docs/api.md says the same in words. Does not know what they do.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, field_serializer, model_validator

from serve.schemas.grammar import check_grammar
from serve.schemas.relayed import RelayedRequest, Text
from serve.schemas.strict import StrictModel, check_open_json, pick_by_kind

OpenJson = Annotated[dict[str, Any], AfterValidator(check_open_json), AfterValidator(check_grammar)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

IGNORED_FIELDS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "modalities",
        "reasoning_effort", "verbosity",
    }
)  # fmt: skip
"""Checked, then dropped."""


class TextPart(StrictModel):
    """A piece of a message's content; images, audio and files are refused, so that nothing is ever fetched."""

    type: Literal["text"]
    text: Text


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256)]
Content = Annotated[Annotated[Text, Tag("text")] | Annotated[Parts, Tag("list")], Discriminator(pick_by_kind)]


class SystemMessage(StrictModel):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = Field(None, max_length=64)

    @field_serializer("role")
    def serialize_role(self, _role: str) -> str:
        """Name a developer's instructions as every chat template knows them."""
        return "system"


class UserMessage(StrictModel):
    """A question."""

    role: Literal["user"]
    content: Content
    name: str | None = Field(None, max_length=64)


class CalledFunction(StrictModel):
    """What the model called earlier."""

    name: FunctionName
    arguments: Text
    parsed_arguments: Any = Field(None, exclude=True)


class ToolCall(StrictModel):
    """An earlier tool call of the assistant."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, exclude=True)


class AssistantMessage(StrictModel):
    """An earlier answer; what vLLM, assistants and the stock client's helpers add to one is taken back and dropped."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = Field(None, max_length=64)
    refusal: str | None = Field(None, exclude=True)
    annotations: list[Any] | None = Field(None, max_length=1024, exclude=True)
    audio: None = Field(None, exclude=True)
    function_call: None = Field(None, exclude=True)
    reasoning: Text | None = Field(None, exclude=True)
    parsed: Any = Field(None, exclude=True)
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None


class ToolMessage(StrictModel):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(max_length=256)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(StrictModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = Field(None, max_length=16_384)
    parameters: OpenJson | None = None
    strict: bool | None = None


class Tool(StrictModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(StrictModel):
    """A function by name."""

    name: FunctionName


class NamedTool(StrictModel):
    """The tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(StrictModel):
    """A schema that the answer must follow."""

    name: FunctionName
    description: str | None = Field(None, max_length=16_384)
    schema_: OpenJson = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(StrictModel):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(StrictModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(RelayedRequest):
    """A chat completion request."""

    ignored: ClassVar[frozenset[str]] = IGNORED_FIELDS

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: int | None = Field(None, ge=1, le=1_048_576)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # ignored, see IGNORED_FIELDS
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @model_validator(mode="after")
    def check_together(self) -> "ChatRequest":
        """Refuse fields that contradict each other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice is not None and self.tools is None and self.tool_choice != "none":
            raise ValueError("tool_choice needs tools")
        return self


def read_text(content: Content | None) -> str:
    """Return a message's content as one text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)
