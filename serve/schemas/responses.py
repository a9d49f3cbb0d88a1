"""The body and the queries of /v1/responses: which fields are served, ignored and refused, with their ranges.

Does not know what they do; docs/api.md says it in words.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from serve.schemas.chat import FunctionName, OpenJson
from serve.schemas.files import QueryModel
from serve.schemas.relayed import ModelName, Text
from serve.schemas.strict import StrictModel, pick_by_kind
from serve.schemas.vector_stores import Metadata

MAX_ITEMS = 2048
"""Of one request's input."""
MAX_STORES = 16
"""Of one tool."""

ItemId = Annotated[str, StringConstraints(max_length=256)]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
"""Only the first adds anything here; the others are of tools that there are not. Log-probabilities are refused."""
RESULTS = "file_search_call.results"


def pick_by_type(value: Any) -> Any:
    """Return an item's type; a message need not say its own."""
    if isinstance(value, dict):
        return value.get("type") or "message"
    return getattr(value, "type", None)


class TextPart(StrictModel):
    """A piece of a message; images, audio and files are refused, so that nothing is ever fetched.

    What answers and the stock client's helpers add to a text is taken back and dropped.
    """

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = Field(None, max_length=1024, exclude=True)
    logprobs: list[Any] | None = Field(None, max_length=4096, exclude=True)
    parsed: Any = Field(None, exclude=True)


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256)]
Content = Annotated[Annotated[Text, Tag("text")] | Annotated[Parts, Tag("list")], Discriminator(pick_by_kind)]


class MessageItem(StrictModel):
    """What somebody said; answers of ours are taken back as they came."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class SearchCallItem(StrictModel):
    """An earlier search of ours, taken back and dropped: each question is searched for anew."""

    type: Literal["file_search_call"]
    id: ItemId
    queries: Annotated[list[Text], Field(max_length=64)]
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"]
    results: list[Any] | None = Field(None, max_length=64)


class FunctionCallItem(StrictModel):
    """An earlier call of a function, as the stock client's own object has it: with what nothing here sets, empty."""

    type: Literal["function_call"]
    call_id: ItemId
    name: FunctionName
    arguments: Text
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    caller: None = None
    namespace: None = None
    parsed_arguments: Any = None


class FunctionOutputItem(StrictModel):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: Content
    id: ItemId | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[SearchCallItem, Tag("file_search_call")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(pick_by_type),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
Words = Annotated[Text, StringConstraints(min_length=1)]
Input = Annotated[Annotated[Words, Tag("text")] | Annotated[Items, Tag("list")], Discriminator(pick_by_kind)]


class HybridSearch(StrictModel):
    """What meaning and words weigh against each other."""

    embedding_weight: float = Field(ge=0, le=1e6)
    text_weight: float = Field(ge=0, le=1e6)

    @model_validator(mode="after")
    def check_sum(self) -> "HybridSearch":
        """Refuse two zeros."""
        if not self.embedding_weight and not self.text_weight:
            raise ValueError("wanted one weight above 0")
        return self

    def read_dense_weight(self) -> float:
        """Return the share of meaning, 0 to 1."""
        return self.embedding_weight / (self.embedding_weight + self.text_weight)


class SearchRanking(StrictModel):
    """How hits are chosen."""

    ranker: Literal["auto", "default-2024-11-15"] | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)
    hybrid_search: HybridSearch | None = None


class FileSearchTool(StrictModel):
    """A search in vector stores; `filters` is read by retrieval, which names every fault."""

    type: Literal["file_search"]
    vector_store_ids: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=64)]],
        Field(min_length=1, max_length=MAX_STORES),
    ]
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: SearchRanking | None = None


class FunctionTool(StrictModel):
    """A function of the client's that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = Field(None, max_length=16_384)
    parameters: OpenJson | None = None
    strict: bool | None = None

    def to_engine(self) -> dict[str, Any]:
        """Return it as the engine's chats have it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}

    def to_answer(self) -> dict[str, Any]:
        """Return it as the response shows it."""
        return {**self.model_dump(), "strict": bool(self.strict)}


Tool = Annotated[FileSearchTool | FunctionTool, Field(discriminator="type")]


class SearchChoice(StrictModel):
    """The search that must be used."""

    type: Literal["file_search"]


class FunctionChoice(StrictModel):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


Choice = Annotated[SearchChoice | FunctionChoice, Field(discriminator="type")]


class PlainFormat(StrictModel):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(StrictModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    description: str | None = Field(None, max_length=16_384)
    schema_: OpenJson = Field(alias="schema")
    strict: bool | None = None


class TextOptions(StrictModel):
    """What the answer looks like."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    def is_json(self) -> bool:
        """Tell whether the answer has to be JSON."""
        return self.format is not None and self.format.type != "text"

    def to_engine(self) -> dict[str, Any]:
        """Return the engine's option for it."""
        if self.format is None or self.format.type == "text":
            return {}
        if isinstance(self.format, PlainFormat):
            return {"response_format": {"type": self.format.type}}
        schema = self.format.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"response_format": {"type": "json_schema", "json_schema": schema}}


class Reasoning(StrictModel):
    """Taken and dropped: the models here do not reason apart from their answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = Field(None, max_length=64)


class StreamOptions(StrictModel):
    """What a stream carries besides the answer."""

    include_obfuscation: bool | None = None


class ResponseRequest(StrictModel):
    """A request for a response."""

    model: ModelName
    input: Input
    instructions: Text | None = None
    previous_response_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    include: Annotated[list[Includable], Field(max_length=16)] | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1_048_576)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # ignored: checked, and at most answered as they came
    background: Literal[False] | None = None
    max_tool_calls: int | None = Field(None, ge=1, le=1_048_576)
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(None, max_length=512)
    reasoning: Reasoning | None = None
    safety_identifier: str | None = Field(None, max_length=512)
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def check_together(self) -> "ResponseRequest":
        """Refuse fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        searches = [tool for tool in self.tools or () if isinstance(tool, FileSearchTool)]
        functions = self.list_functions()
        if len(searches) > 1 or (searches and functions):
            raise ValueError("tools: wanted one file_search or functions, not both")
        if isinstance(self.tool_choice, SearchChoice) and not searches:
            raise ValueError("tool_choice: wanted a file_search among the tools, found none")
        if isinstance(self.tool_choice, FunctionChoice) and self.tool_choice.name not in [
            one.name for one in functions
        ]:
            raise ValueError(f"tool_choice: wanted a function among the tools, found no {self.tool_choice.name}")
        return self

    def list_functions(self) -> list[FunctionTool]:
        """Return the functions that the model may call."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    def find_search(self) -> FileSearchTool | None:
        """Return the search that this request wants."""
        searches = [tool for tool in self.tools or () if isinstance(tool, FileSearchTool)]
        return searches[0] if searches and self.tool_choice != "none" else None

    def wants_results(self) -> bool:
        """Tell whether the answer shall hold what was found."""
        return RESULTS in (self.include or ())


class ResponseQuery(QueryModel):
    """How a stored response is read."""

    include: list[Includable] = Field(default_factory=list, alias="include[]", max_length=16)
    stream: Literal["false"] | None = None


class InputItemQuery(QueryModel):
    """Which of a response's input items are wanted."""

    after: str | None = Field(None, max_length=256)
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    include: list[Includable] = Field(default_factory=list, alias="include[]", max_length=16)
