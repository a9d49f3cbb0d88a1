"""Answering from documents: question in, grounded and cited answer out, as a stream of events.

resolve → search → budget → prompt → stream from the engine → cite. Stream and non-stream are the same events, sent or
collected, so that they agree to the character. Does not know HTTP (routes/chat.py does), how passages are found
(retrieval does), or what supports a sentence (citing.py does).
"""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import MISSING

from core.errors import ConfigError
from retrieval.searcher import Hit, SearchResult
from serve.boundary import InvalidRequest
from serve.citing import CitedText, Source, choose_source, find_candidates, find_quoted, strip_list_number
from serve.engine import Engine
from serve.library import Library
from serve.relay import ContextTooLong, open_stream, read_chunks
from serve.schemas.chat import AssistantMessage, ChatRequest, SystemMessage, ToolMessage, UserMessage, read_text
from serve.sentences import SENTENCE_END, MarkRemover, Piece, SentenceSplitter, remove_marks

logger = logging.getLogger(__name__)

INSTRUCTIONS = "Answer from the documents. If they do not hold the answer, say so."
NOTHING_FOUND = "I could not find this in the documents."
TOKENS_A_MESSAGE = 8
"""What a chat template puts around a message, rounded up."""
TOKENS_A_CHAT = 64
"""What a chat template puts around a chat (Llama 3 prints two dates), and room for texts that join into more tokens."""
TAKEN_FIELDS = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "n", "stop", "seed", "frequency_penalty", "presence_penalty",
    }
)  # fmt: skip
"""Fields of a chat request that mean something to an assistant; OpenAI's ignored ones are ignored here, too."""
SAMPLING_FIELDS = ("top_p", "stop", "seed", "frequency_penalty", "presence_penalty")


@dataclass(slots=True)
class AssistantConfig:
    """What stands under `assistants.NAME`.

    Attributes:
        model: The base model, an adapter's own name, or a run id.
        stores: Names of the stores to search; all of them, best hits first.
        instructions: The system message.
        k: Passages that the model reads.
        min_score: Least similarity (cosine, -1 to 1) of question and passage; below it nothing counts as found.
        nothing_found: The answer when nothing is found; the model is not asked.
        max_tokens: Of an answer, where the request does not say.
        temperature: Where the request does not say.
    """

    model: str = MISSING
    stores: list[str] = field(default_factory=list)
    instructions: str = INSTRUCTIONS
    k: int = 3
    min_score: float = 0.25
    nothing_found: str = NOTHING_FOUND
    max_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"assistants.*.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("stores", bool(self.stores), "at least one store", self.stores),
                ("k", 1 <= self.k <= 50, "1 to 50", self.k),
                ("min_score", -1 <= self.min_score <= 1, "-1 to 1", self.min_score),
                ("nothing_found", bool(self.nothing_found.strip()), "a sentence", self.nothing_found),
                ("max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens),
                ("temperature", 0 <= self.temperature <= 2, "0 to 2", self.temperature),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Assistant:
    """An assistant as it is served.

    Attributes:
        name: What a request's `model` holds.
        engine_model: The engine's name of its model.
        config: Its settings.
    """

    name: str
    engine_model: str
    config: AssistantConfig


@dataclass(frozen=True, slots=True)
class TextEvent:
    """The next stretch of the answer, marks included."""

    text: str


@dataclass(frozen=True, slots=True)
class GroundsEvent:
    """What the answer rests on; comes once, after the text.

    Attributes:
        annotations: One url_citation for each mark.
        retrieval: What was searched and what the model was given.
    """

    annotations: list[dict[str, Any]]
    retrieval: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The end of the answer."""

    finish_reason: str
    usage: dict[str, Any]


AnswerEvent = TextEvent | GroundsEvent | EndEvent


@dataclass(frozen=True, slots=True)
class Answering:
    """All that answering needs, for one gateway.

    Attributes:
        engine: The engine.
        library: The stores.
        assistants: By name.
        count_tokens: Length of a text in the base model's tokens.
        first_byte_timeout_s: Longest wait for the model's first token.
    """

    engine: Engine
    library: Library
    assistants: dict[str, Assistant]
    count_tokens: Callable[[str], int]
    first_byte_timeout_s: float

    async def answer(self, name: str, request: ChatRequest, base_url: str) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a chat as an assistant.

        Args:
            name: The assistant.
            request: The chat; its last message is the question.
            base_url: Of the gateway as the client reaches it, for the links of citations.

        Yields:
            Text events, then one GroundsEvent, then one EndEvent.

        Raises:
            LoamError: As retrieval and the engine raise them, before or between the events.
        """
        assistant = self.assistants[name]
        check_fields(request)
        chat = await self.library.run(read_chat, request)
        self.engine.check_ready()
        found = await self.library.search(assistant.config.stores, chat.question, assistant.config.k)
        hits = [hit for hit in found.hits if hit.dense_score >= assistant.config.min_score]
        limit = self.engine.max_model_len
        answer_tokens = request.max_completion_tokens or request.max_tokens or assistant.config.max_tokens
        answer_tokens = min(answer_tokens, limit // 2)
        hits, history = await self.library.run(
            fit_budget, assistant.config, chat, hits, self.count_tokens, limit - answer_tokens
        )
        sources = list_sources(hits, base_url)
        if not sources:
            yield TextEvent(assistant.config.nothing_found)
            yield GroundsEvent([], shape_retrieval(found, []))
            yield EndEvent("stop", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
            return
        messages = build_prompt(assistant.config.instructions, chat, hits, history)
        body = build_body(assistant, request, messages, answer_tokens)
        async with aclosing(self._write(body, sources)) as events:
            async for event in events:
                if isinstance(event, GroundsEvent):
                    event.retrieval.update(shape_retrieval(found, hits))
                yield event

    async def _write(self, body: bytes, sources: list[Source]) -> AsyncGenerator[AnswerEvent, None]:
        """Let the model write, and put the marks in."""
        stream = await open_stream(self.engine, "/v1/chat/completions", body, self.first_byte_timeout_s)
        remover, splitter, cited = MarkRemover(), SentenceSplitter(), CitedText(0, [])
        support = Support(self.library, sources)
        finish_reason = "stop"
        usage: dict[str, Any] = {}
        async with aclosing(stream):
            async for chunk in read_chunks(stream):
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    finish_reason = choice.get("finish_reason") or finish_reason
                    text = remover.feed(choice["delta"].get("content") or "")
                    for piece in splitter.feed(text):
                        yield TextEvent(await support.cite(piece, cited))
        for piece in splitter.feed(remover.finish()) + splitter.finish():
            is_cut = finish_reason == "length" and not SENTENCE_END.search(piece.sentence or "")
            yield TextEvent(await support.cite(Piece(piece.text) if is_cut else piece, cited))
        yield GroundsEvent(cited.annotations, {})
        yield EndEvent(finish_reason, usage)


class Support:
    """Finds the support of one answer's sentences; embeds the passages once, when they are first needed."""

    def __init__(self, library: Library, sources: list[Source]) -> None:
        """Begin an answer."""
        self._library = library
        self._sources = sources
        self._vectors: npt.NDArray[np.float32] | None = None  # (sources, dimension)

    async def cite(self, piece: Piece, cited: CitedText) -> str:
        """Return a piece's text, with a mark behind it where its sentence is supported."""
        text = cited.write(piece.text)
        source = await self._find(piece.sentence) if piece.sentence else None
        return text + cited.cite(source) if source else text

    async def _find(self, sentence: str) -> Source | None:
        quoted = find_quoted(sentence, self._sources)
        if quoted:
            return quoted
        candidates = find_candidates(sentence, self._sources)
        if not candidates:
            return None
        if self._vectors is None:
            self._vectors = await self._library.embed([source.text for source in self._sources])
        vector = (await self._library.embed([strip_list_number(sentence)]))[0]  # (dimension,)
        similarities: list[float] = (self._vectors @ vector).tolist()
        return choose_source(candidates, similarities, self._sources)


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
    wishes, turns = [], []
    for index, message in enumerate(request.messages):
        match message:
            case SystemMessage():
                wishes.append(read_text(message.content))
            case UserMessage():
                turns.append({"role": "user", "content": read_text(message.content)})
            case AssistantMessage() if not message.tool_calls:
                turns.append({"role": "assistant", "content": remove_marks(read_text(message.content))})
            case AssistantMessage() | ToolMessage():
                where = f"messages.{index}"
                raise InvalidRequest(f"{where}: an assistant takes no tool calls; ask its model directly.", param=where)
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise InvalidRequest("messages: wanted the user's question as the last message.", param="messages")
    return Chat(turns[-1]["content"], turns[:-1], "\n\n".join(wish for wish in wishes if wish.strip()))


def fit_budget(
    config: AssistantConfig, chat: Chat, hits: Sequence[Hit], count_tokens: Callable[[str], int], budget: int
) -> tuple[list[Hit], list[dict[str, str]]]:
    """Choose the passages and the history that fit the prompt's budget: passages first, best first; then newest turns.

    Args:
        config: The assistant.
        chat: The chat.
        hits: The passages, best first.
        count_tokens: Length of a text in the model's tokens.
        budget: Tokens for the prompt.

    Returns:
        The hits that fit, in their order, and the history that fits, oldest first.

    Raises:
        ContextTooLong: Instructions and question alone do not fit.
    """
    left = budget - TOKENS_A_CHAT - 2 * TOKENS_A_MESSAGE
    left -= count_tokens(f"{config.instructions}\n\n{chat.wishes}\n\n{chat.question}")
    if left < 0:
        raise ContextTooLong(
            f"messages: wanted instructions and question in {budget} tokens, found {-left} too many. Shorten the "
            "question, or ask for fewer max_tokens.",
            param="messages",
        )
    chosen = []
    for hit in hits:
        cost = count_tokens(format_passage(hit)) + 2
        if cost <= left:
            chosen.append(hit)
            left -= cost
    turns: list[dict[str, str]] = []
    for turn in reversed(chat.history):
        left -= count_tokens(turn["content"]) + TOKENS_A_MESSAGE
        if left < 0:
            break
        turns.insert(0, turn)
    while turns and turns[0]["role"] != "user":
        turns.pop(0)
    return chosen, turns


def format_passage(hit: Hit) -> str:
    """Return a passage as the model reads it."""
    title = f"{hit.file} | {hit.heading}" if hit.heading else hit.file
    return f"Document: {title}\n{hit.text}"


def build_prompt(
    instructions: str, chat: Chat, hits: Sequence[Hit], history: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Build the messages of a grounded question; the training chats of examples/acme carry the same layout.

    Args:
        instructions: The assistant's.
        chat: Question, and wishes that the client's own system message adds.
        hits: The passages, best first.
        history: Earlier turns, oldest first.

    Returns:
        System message (instructions, then the passages), the history, the question as it came.
    """
    parts = [instructions, chat.wishes, *(format_passage(hit) for hit in hits)]
    system = "\n\n".join(part for part in parts if part)
    return [{"role": "system", "content": system}, *history, {"role": "user", "content": chat.question}]


def build_body(assistant: Assistant, request: ChatRequest, messages: list[dict[str, str]], answer_tokens: int) -> bytes:
    """Return the request that goes to the engine."""
    temperature = assistant.config.temperature if request.temperature is None else request.temperature
    body: dict[str, Any] = {
        "model": assistant.engine_model,
        "messages": messages,
        "max_tokens": answer_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sampling = {name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    return json.dumps(body | sampling, ensure_ascii=False).encode()


def list_sources(hits: Sequence[Hit], base_url: str) -> list[Source]:
    """Number the chosen hits, once and for good."""
    return [
        Source(n, hit.file, hit.heading, f"{base_url.rstrip('/')}/sources/{hit.chunk_id}", hit.text)
        for n, hit in enumerate(hits, start=1)
    ]


def shape_retrieval(found: SearchResult, hits: Sequence[Hit]) -> dict[str, Any]:
    """Return what was searched and what the model was given, as the answer tells it."""
    return {
        "query": found.query,
        "stores": [searched.store for searched in found.searched],
        "hits": [
            {
                "n": n,
                "store": hit.store,
                "file": hit.file,
                "heading": hit.heading,
                "page": hit.page,
                "chunk_id": hit.chunk_id,
                "score": round(hit.score, 4),
                "stages": hit.describe_stages(),
                "start": hit.start,
                "end": hit.end,
                "text": hit.text,
            }
            for n, hit in enumerate(hits, start=1)
        ],
    }
