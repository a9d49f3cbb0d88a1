"""What is asked of an assistant: question, history and wishes, by whatever route they came.

Reads chat completions and responses into one form; what an assistant cannot honour is refused, not dropped silently.
Does not know how anything is answered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval.filters import Filter
from retrieval.ranking import AS_CONFIGURED, Ranking
from serve.boundary import InvalidRequest
from serve.schemas.chat import AssistantMessage, ChatRequest, SystemMessage, ToolMessage, UserMessage, read_text
from serve.sentences import remove_marks

TAKEN_FIELDS = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "n", "stop", "seed", "frequency_penalty", "presence_penalty",
    }
)  # fmt: skip
"""Fields of a chat request that mean something to an assistant; OpenAI's ignored ones are ignored here, too."""
SAMPLING_FIELDS = ("top_p", "stop", "seed", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat as an assistant reads it.

    Attributes:
        question: The last message, the user's.
        history: What user and assistant said before, oldest first, without marks.
        wishes: What the client's own system messages say, or an empty text.
    """

    question: str
    history: list[dict[str, str]]
    wishes: str


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One question to an assistant, with what this request wants otherwise than the assistant is configured.

    Attributes:
        chat: The question and what came before it.
        filters: Which documents may be found; None: all of the stores'.
        ranking: How they are searched; the threshold is the assistant's.
        max_tokens: Of the answer; None: the assistant's.
        temperature: None: the assistant's.
        sampling: Further options of the engine, as it names them.
        keeps_history: Whether the whole history must fit the model's context; else its oldest turns are left out.
        is_cited: Whether marks are set; not in an answer that has to be JSON.
    """

    chat: Chat
    filters: Filter | None = None
    ranking: Ranking = AS_CONFIGURED
    max_tokens: int | None = None
    temperature: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    keeps_history: bool = False
    is_cited: bool = True


def read_chat_request(request: ChatRequest) -> Inquiry:
    """Return what a chat completion asks.

    Raises:
        InvalidRequest: It holds what an assistant cannot honour, or no question.
    """
    check_fields(request)
    return Inquiry(
        read_chat(request),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        sampling={name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None},
    )


def check_fields(request: ChatRequest) -> None:
    """Refuse fields that an assistant cannot honour, instead of dropping them silently.

    Raises:
        InvalidRequest: There is one.
    """
    refused = request.list_served_fields() - TAKEN_FIELDS
    if refused:
        name = min(refused)
        raise InvalidRequest(f"{name}: an assistant does not take this field; ask its model directly.", param=name)
    if request.n not in (None, 1):
        raise InvalidRequest(f"n: an assistant gives 1 answer, found {request.n}.", param="n")


def read_chat(request: ChatRequest) -> Chat:
    """Take a chat apart into question, history and wishes.

    Raises:
        InvalidRequest: The last message is not the user's, is empty, or there are tool messages.
    """
    turns: list[tuple[str, str]] = []
    for index, message in enumerate(request.messages):
        match message:
            case SystemMessage() | UserMessage():
                turns.append((message.role, read_text(message.content)))
            case AssistantMessage() if not message.tool_calls:
                turns.append((message.role, read_text(message.content)))
            case AssistantMessage() | ToolMessage():
                where = f"messages.{index}"
                raise InvalidRequest(f"{where}: an assistant takes no tool calls; ask its model directly.", param=where)
    return sort_turns(turns, "messages")


def sort_turns(turns: Iterable[tuple[str, str]], param: str) -> Chat:
    """Take a conversation apart into question, history and wishes.

    Args:
        turns: Role and text of each message, oldest first.
        param: The field that they came in.

    Raises:
        InvalidRequest: The last message is not the user's, or is empty.
    """
    wishes, said = [], []
    for role, text in turns:
        match role:
            case "system" | "developer":
                wishes.append(text)
            case "assistant":
                said.append({"role": "assistant", "content": remove_marks(text)})
            case _:
                said.append({"role": "user", "content": text})
    if not said or said[-1]["role"] != "user" or not said[-1]["content"].strip():
        raise InvalidRequest(f"{param}: wanted the user's question as the last message.", param=param)
    return Chat(said[-1]["content"], said[:-1], "\n\n".join(wish for wish in wishes if wish.strip()))
