"""Answering from documents: question in, grounded and cited answer out, as a stream of events.

    resolve (the route) → (condense) → search → budget → prompt → stream from the engine → cite

One path for assistants of chat completions and for file_search of responses; stream and non-stream are the same events,
sent or collected, so that they agree to the character. Does not know HTTP (the routes do), how passages are found
(retrieval does), how the prompt looks (prompting.py does), or what supports a sentence (citing.py does).
"""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import MISSING

from core.errors import ConfigError
from retrieval.searcher import Hit, SearchResult
from serve.citing import Citation, CitedText, Source, choose_source, find_candidates, find_quoted, strip_list_number
from serve.condensing import build_condensing, read_condensed
from serve.inquiry import Chat, Inquiry
from serve.library import Library
from serve.model_server import Upstream
from serve.prompting import Disarm, drop_covered, fit_prompt, read_passage_text
from serve.relay import fetch, open_stream, read_chunks
from serve.sentences import SENTENCE_END, AnswerSplitter, Piece
from serve.word_marks import drop_word_marks

logger = logging.getLogger(__name__)

CHAT_PATH = "/v1/chat/completions"
INSTRUCTIONS = "Answer from the documents. If they do not hold the answer, say so."
NOTHING_FOUND = "I could not find this in the documents."


@dataclass(slots=True)
class AssistantConfig:
    """What stands under `assistants.NAME`.

    Attributes:
        model: The base model, an adapter's own name, or a run id.
        stores: Names of the stores to search; all of them, best hits first.
        instructions: The system message.
        k: Passages that the model reads.
        min_score: Least relevance of a passage to the question (the cosine of its best span, or the reranker's
            probability where there is one), -1 to 1; below it nothing counts as found.
        nothing_found: The answer when nothing is found; the model is not asked.
        max_tokens: Of an answer, where the request does not say.
        temperature: Where the request does not say.
        condense: Whether the base model first rewrites a question that follows others into one that stands alone, which
            is then searched for in its place.
    """

    model: str = MISSING
    stores: list[str] = field(default_factory=list)
    instructions: str = INSTRUCTIONS
    k: int = 3
    min_score: float = 0.35
    nothing_found: str = NOTHING_FOUND
    max_tokens: int = 512
    temperature: float = 0.0
    condense: bool = False

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
        owner: Who has made it, and whose stores it searches; None: the operator, who lets everybody search them by it.
    """

    name: str
    engine_model: str
    config: AssistantConfig
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class SearchedEvent:
    """What was searched; the first event of an answer from documents.

    Attributes:
        found: What the search brought.
        hits: What of it the model reads, numbered from 1 by its order.
    """

    found: SearchResult
    hits: list[Hit]


@dataclass(frozen=True, slots=True)
class TextEvent:
    """The next stretch of the answer, marks included."""

    text: str


@dataclass(frozen=True, slots=True)
class CitedEvent:
    """A mark that the stretch before this event ends with."""

    citation: Citation


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The end of the answer."""

    finish_reason: str
    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallEvent:
    """The next stretch of a call of a function.

    Attributes:
        place: Which of the answer's calls, from 0.
        call_id: The engine's id of it; empty but in its first stretch, like the name.
        name: The function's.
        arguments: What comes next of them, JSON.
    """

    place: int
    call_id: str
    name: str
    arguments: str


AnswerEvent = SearchedEvent | TextEvent | CitedEvent | EndEvent
PlainEvent = TextEvent | CallEvent | EndEvent


@dataclass(frozen=True, slots=True)
class Answering:
    """All that answering needs, for one gateway.

    Attributes:
        engine: The engine.
        library: The stores.
        assistants: Those of the configuration, by name.
        count_tokens: Length of a text in the base model's tokens.
        first_byte_timeout_s: Longest wait for the model's first token.
        base_model: The engine's name of the base model, which condenses questions.
        disarm: Makes words of control tokens in what documents and clients say.
    """

    engine: Upstream
    library: Library
    assistants: dict[str, Assistant]
    count_tokens: Callable[[str], int]
    first_byte_timeout_s: float
    base_model: str
    disarm: Disarm

    async def answer(self, assistant: Assistant, inquiry: Inquiry) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a question as an assistant.

        Args:
            assistant: Who is asked.
            inquiry: What is asked.

        Yields:
            One SearchedEvent, then text, each mark behind the stretch that it ends, then one EndEvent.

        Raises:
            LoamError: As retrieval and the engine raise them, before or between the events.
        """
        self.engine.check_ready()
        config = assistant.config
        ranking = replace(inquiry.ranking, min_score=config.min_score)
        query = await self._choose_query(config, inquiry.chat)
        found = await self.library.search(config.stores, query, config.k, inquiry.filters, ranking)
        limit = self.engine.max_model_len
        answer_tokens = min(inquiry.max_tokens or config.max_tokens, limit // 2)
        read, budget = drop_covered(found.hits), limit - answer_tokens
        hits, messages = await self.library.run(
            fit_prompt, config.instructions, inquiry, read, self.count_tokens, budget, self.disarm
        )
        yield SearchedEvent(found, hits)
        if not hits:
            yield TextEvent(config.nothing_found)
            yield EndEvent("stop", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
            return
        temperature = config.temperature if inquiry.temperature is None else inquiry.temperature
        options = {**inquiry.sampling, "temperature": temperature, "max_tokens": answer_tokens}
        body = build_body(assistant.engine_model, messages, options)
        async with aclosing(self._write_cited(body, list_sources(hits), is_marked=inquiry.is_cited)) as events:
            async for event in events:
                yield event

    async def _choose_query(self, config: AssistantConfig, chat: Chat) -> str:
        """Return what is searched for: the question, condensed where it follows others and the assistant wants that."""
        if not (config.condense and chat.history):
            return chat.question
        body = await self.library.run(build_condensing, self.base_model, chat, self.count_tokens, self.disarm)
        return read_condensed(await fetch(self.engine, CHAT_PATH, body, self.first_byte_timeout_s), chat.question)

    async def write(self, body: bytes) -> AsyncGenerator[PlainEvent, None]:
        """Let the model write, and pass its text and its calls on as they come.

        Args:
            body: What `build_body` returned.

        Yields:
            Text and calls, then one EndEvent.

        Raises:
            LoamError: As the engine raises it.
        """
        ending = _Ending()
        async with aclosing(self._read_deltas(body, ending)) as deltas:
            async for delta in deltas:
                if text := delta.get("content"):
                    yield TextEvent(text)
                for call in delta.get("tool_calls") or ():
                    function = call.get("function") or {}
                    name, arguments = function.get("name") or "", function.get("arguments") or ""
                    yield CallEvent(call.get("index", 0), call.get("id") or "", name, arguments)
        yield EndEvent(ending.finish_reason, ending.usage)

    async def _write_cited(
        self, body: bytes, sources: list[Source], *, is_marked: bool
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Let the model write, and put the marks in, unless the text may not be touched."""
        ending, support = _Ending(), Support(self.library, sources)
        splitter = AnswerSplitter([source.text for source in sources])
        async with aclosing(self._read_deltas(body, ending)) as deltas:
            async for delta in deltas:
                text = delta.get("content") or ""
                if not is_marked:
                    if text:
                        yield TextEvent(text)
                    continue
                for piece in splitter.feed(text):
                    for event in await support.cite(piece):
                        yield event
        for piece in splitter.finish():
            is_cut = ending.finish_reason == "length" and not SENTENCE_END.search(piece.sentence or "")
            for event in await support.cite(Piece(piece.text) if is_cut else piece):
                yield event
        yield EndEvent(ending.finish_reason, ending.usage)

    async def _read_deltas(self, body: bytes, ending: "_Ending") -> AsyncGenerator[dict[str, Any], None]:
        """Let the model write; yield what it adds as it comes and note how it ends."""
        stream = await open_stream(self.engine, CHAT_PATH, body, self.first_byte_timeout_s)
        async with aclosing(stream):
            async for chunk in read_chunks(stream):
                ending.usage = chunk.get("usage") or ending.usage
                for choice in chunk["choices"]:
                    ending.finish_reason = choice.get("finish_reason") or ending.finish_reason
                    yield choice["delta"]


@dataclass(slots=True)
class _Ending:
    """How the model's answer ends, as it is learned on the way."""

    finish_reason: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)


class Support:
    """Finds the support of one answer's sentences; embeds the passages once, when they are first needed."""

    def __init__(self, library: Library, sources: list[Source]) -> None:
        """Begin an answer."""
        self._library = library
        self._sources = sources
        self._passages = [source.text.casefold() for source in sources]
        self._cited = CitedText()
        self._vectors: npt.NDArray[np.float32] | None = None  # (sources, dimension)

    async def cite(self, piece: Piece) -> list[AnswerEvent]:
        """Return a piece's text, with a mark behind it where its sentence is supported."""
        text = self._cited.write(piece.text)
        source = await self._find(piece.sentence) if piece.sentence else None
        if source is None:
            return [TextEvent(text)]
        mark, citation = self._cited.cite(source)
        return [TextEvent(text + mark), CitedEvent(citation)]

    async def _find(self, sentence: str) -> Source | None:
        sentence = drop_word_marks(sentence, self._passages)
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


def build_body(model: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> bytes:
    """Return a request to the engine whose answer is streamed.

    Args:
        model: The engine's name of it.
        messages: The prompt.
        options: Of sampling, as the engine names them.
    """
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def list_sources(hits: Sequence[Hit]) -> list[Source]:
    """Number the chosen hits, once and for good."""
    return [
        Source(n, hit.file, hit.heading, hit.chunk_id, read_passage_text(hit)) for n, hit in enumerate(hits, start=1)
    ]
