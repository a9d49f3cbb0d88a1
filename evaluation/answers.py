"""Saved answers: a served system is asked once, through its HTTP endpoint, and all that was measured is kept.

    {"format": "loam-answers-1", "settings": {...}}          the first line: what the answers depend on
    {"arm": "rag", "question_id": "w1", "text": "26 months. [1]", "citations": [1], "hits": [...], ...}

Every figure of a report is computed from this file, so that each leads back to an answer, and scoring again asks
nothing again. Lines are only added: a run that was stopped goes on, and what failed is asked again. Does not know
what is right.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx2  # the client openai is built on; a stream that breaks off raises its errors
import openai

from core.errors import ConfigError, Conflict, ContractError, EngineUnavailable, InputError, ModelNotFound
from core.lines import LineWriter, read_whole_lines
from evaluation.questions import Question

FORMAT = "loam-answers-1"
MARK = re.compile(r"\[(\d+)\]")


@dataclass(slots=True)
class AskConfig:
    """How a served system is asked.

    Attributes:
        url: Base URL of an OpenAI-compatible endpoint, with /v1; its key comes from LOAM_API_KEY.
        max_tokens: Most tokens of an answer.
        temperature: 0 to 2; at 0 the same answers come again.
        seed: Of the endpoint's sampling; null: not sent.
        concurrency: Questions at the same time; more than 1 lengthens each one's latency.
        timeout_s: Longest wait for one answer.
        retries: How often a question is sent again after 408, 409, 429, 5xx or a broken connection.
    """

    url: str = "http://127.0.0.1:8000/v1"
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    concurrency: int = 1
    timeout_s: float = 300.0
    retries: int = 2

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"ask.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("url", self.url.startswith(("http://", "https://")), "http://HOST:PORT/v1", self.url),
                ("max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens),
                ("temperature", 0 <= self.temperature <= 2, "0 to 2", self.temperature),
                ("concurrency", 1 <= self.concurrency <= 256, "1 to 256", self.concurrency),
                ("timeout_s", self.timeout_s > 0, "above 0", self.timeout_s),
                ("retries", 0 <= self.retries <= 10, "0 to 10", self.retries),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering.

    Attributes:
        name: In tables and saved answers.
        model: What the request's `model` holds: a base model, adapter, run id or assistant.
        instructions: A system message before the question; None for none.
    """

    name: str
    model: str
    instructions: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that the model read, as the gateway's `retrieval.hits` tells it."""

    n: int
    store: str
    file: str
    heading: str | None
    page: int | None
    chunk_id: str
    score: float | None
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with everything that was measured of it.

    Attributes:
        arm: Name of the arm.
        question_id: Of the question.
        question: Its text when it was asked.
        model: What was asked for.
        text: The answer with its marks `[n]`; empty where there was an error.
        citations: Numbers of the passages whose marks stand in the text, each once, in order of their first mark.
        hits: The passages that the model read, best first.
        searched: Whether documents were searched; False for a model without a store.
        finish_reason: As the endpoint said; None where it did not.
        prompt_tokens: As the endpoint counted; None where it did not.
        completion_tokens: As the endpoint counted; None where it did not.
        ttft_s: Seconds from the request to the first text; None where none came.
        latency_s: Seconds from the request to the end.
        asked_at: Unix seconds of the request.
        error: Class and sentence of what went wrong; None where nothing did.
    """

    arm: str
    question_id: str
    question: str
    model: str
    text: str
    citations: tuple[int, ...]
    hits: tuple[Passage, ...]
    searched: bool
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_s: float | None
    latency_s: float
    asked_at: float
    error: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Arm and question, which a file holds one answer for."""
        return self.arm, self.question_id


def read_answers(path: Path) -> list[Answer]:
    """Read saved answers; of several for one question and arm the last counts. A half-written last line is left out.

    Raises:
        InputError: There is no such file.
        ContractError: It is no file of answers.
    """
    if not path.is_file():
        raise InputError(f"answers: wanted a file of saved answers, found nothing at {path}. Run evaluate.py first.")
    return list(_read_file(path)[1].values())


def _read_file(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Answer]]:
    """Return a file's settings, and its answers by key in the order of their first line."""
    answers: dict[tuple[str, str], Answer] = {}
    settings: dict[str, Any] = {}
    for number, line in enumerate(read_whole_lines(path), start=1):
        try:
            row = json.loads(line)
            if number == 1:
                if row["format"] != FORMAT:
                    raise ValueError(f"format {row['format']!r}")
                settings = row["settings"]
                continue
            answer = _parse_answer(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(
                f"{path}, line {number}: wanted {FORMAT}, found something else ({error}). Use another name."
            ) from error
        answers[answer.key] = answer
    return settings, answers


def _parse_answer(row: Mapping[str, Any]) -> Answer:
    values = {field.name: row[field.name] for field in fields(Answer)}
    values["citations"] = tuple(values["citations"])
    values["hits"] = tuple(Passage(**hit) for hit in values["hits"])
    return Answer(**values)


def ask_all(
    questions: Sequence[Question],
    arms: Sequence[Arm],
    config: AskConfig,
    path: Path,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Ask every question of every arm and save the answers, going on where an earlier run stopped.

    Arms take turns: each question is asked of every arm before the next one, and another arm begins each time, so that
    a machine that slows down slows all of them alike.

    Args:
        questions: What is asked.
        arms: Of whom.
        config: How.
        path: File of saved answers; may exist.
        on_answer: Told of each answer as it is saved, also of those that were there.

    Returns:
        The answers, questions in their order, and arms in theirs for each.

    Raises:
        ModelNotFound: The endpoint does not list an arm's model.
        EngineUnavailable: The endpoint cannot be reached, or went away; what was answered is saved.
        InputError: The endpoint refuses the key.
        Conflict: The file was made with other settings, arms or question texts.
        StorageFull: The disk is full; what was answered is saved.
    """
    settings = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "seed": config.seed,
        "concurrency": config.concurrency,
        "arms": {arm.name: {"model": arm.model, "instructions": arm.instructions} for arm in arms},
    }
    saved = read_saved(path, settings, questions)
    texts = {question.id: question.question for question in questions}
    done = {key: answer for key, answer in saved.items() if answer.error is None and key[1] in texts}
    pending = [pair for pair in take_turns(questions, arms) if (pair[1].name, pair[0].id) not in done]
    for answer in done.values():
        on_answer(answer)
    if pending:
        heading = json.dumps({"format": FORMAT, "settings": settings}, ensure_ascii=False)
        with LineWriter(path) as writer:
            asyncio.run(_ask_pending(pending, config, writer, heading, done, on_answer))
    return [done[arm.name, question.id] for question in questions for arm in arms]


def read_saved(path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> dict[tuple[str, str], Answer]:
    """Return what a file holds already; nothing where there is none.

    Args:
        path: File of saved answers.
        settings: What they must have been made with.
        questions: Whose texts must be those that were asked.

    Raises:
        Conflict: It was made from something else.
    """
    earlier, saved = _read_file(path)
    if not earlier:
        return {}
    differing = [
        f"{key}: {json.dumps(earlier.get(key), ensure_ascii=False)} then, {json.dumps(value, ensure_ascii=False)} now"
        for key, value in settings.items()
        if earlier.get(key) != value
    ]
    texts = {question.id: question.question for question in questions}
    changed = [one.question_id for one in saved.values() if one.question != texts.get(one.question_id, one.question)]
    if changed:
        differing.append(f"questions: the text of {', '.join(sorted(set(changed))[:5])} was another")
    if differing:
        raise Conflict(
            f"{path}: wanted answers to the same questions under the same settings, found others "
            f"({'; '.join(differing)}). Give another name, or remove the file to ask everything anew.",
            param="name",
        )
    return saved


def take_turns(questions: Sequence[Question], arms: Sequence[Arm]) -> list[tuple[Question, Arm]]:
    """Return every question with every arm, in the order of asking: by question, another arm first each time."""
    count = len(arms)
    return [(question, arms[(turn + at) % count]) for turn, question in enumerate(questions) for at in range(count)]


async def _ask_pending(
    pending: Iterable[tuple[Question, Arm]],
    config: AskConfig,
    writer: LineWriter,
    heading: str,
    done: dict[tuple[str, str], Answer],
    on_answer: Callable[[Answer], None],
) -> None:
    """Ask what is pending, some at a time, and save each answer as it comes."""
    pairs = list(pending)
    rest = iter(pairs)
    client = openai.AsyncOpenAI(
        base_url=config.url,
        api_key=os.environ.get("LOAM_API_KEY", "none"),
        max_retries=config.retries,
        timeout=config.timeout_s,
    )

    async def work() -> None:
        for question, arm in rest:
            answer = await ask(client, question, arm, config)
            writer.write(json.dumps(asdict(answer), ensure_ascii=False))
            done[answer.key] = answer
            on_answer(answer)

    async with client:
        await check_models(client, sorted({arm.model for _, arm in pairs}), config.url)
        if writer.is_empty():
            writer.write(heading)
        await run_workers(work, min(config.concurrency, len(pairs)))


async def run_workers(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run the same work several times at once; when one fails, the others are ended before its error goes on."""
    workers = [asyncio.ensure_future(work()) for _ in range(count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def check_models(client: openai.AsyncOpenAI, models: Sequence[str], url: str) -> None:
    """Make sure that an endpoint serves some models, before anything is asked.

    Raises:
        ModelNotFound: It does not list one of them.
        EngineUnavailable: It cannot be reached.
        InputError: It refuses the key or the list.
    """
    try:
        served = [model.id async for model in client.models.list()]
    except openai.APIConnectionError as error:
        raise _describe_silence(url) from error
    except openai.APIError as error:
        raise InputError(
            f"{url}: wanted the list of models, found a refusal: {error.message}. Check the URL (it ends in /v1) and "
            "the key in LOAM_API_KEY."
        ) from error
    if missing := [model for model in models if model not in served]:
        raise ModelNotFound(
            f"{url}: wanted the model {', '.join(missing)}, found {', '.join(served) or 'none'}. Serve it, or give one "
            "of these.",
            param="model",
        )


def _describe_silence(url: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"{url}: wanted an OpenAI-compatible server, found none that answers. Start serve/run.py and give the same "
        "command again: it goes on with what is not answered yet."
    )


async def ask(client: openai.AsyncOpenAI, question: Question, arm: Arm, config: AskConfig) -> Answer:
    """Ask one question of one arm, streamed.

    Returns:
        The answer; what the endpoint refused or broke off is told in `error`.

    Raises:
        EngineUnavailable: The endpoint cannot be reached at all.
    """
    messages: list[Any] = [{"role": "system", "content": arm.instructions}] if arm.instructions else []
    messages.append({"role": "user", "content": question.question})
    reading = _Reading()
    asked_at, start = time.time(), time.monotonic()
    error = None
    try:
        async with asyncio.timeout(config.timeout_s):
            stream = await client.chat.completions.create(
                model=arm.model,
                messages=messages,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                seed=openai.omit if config.seed is None else config.seed,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for chunk in stream:
                reading.take(chunk.to_dict(mode="json"), time.monotonic() - start)
        if reading.finish_reason is None:
            error = "the stream ended without a finish_reason"
    except (TimeoutError, openai.APITimeoutError):
        error = f"timeout: no whole answer within {config.timeout_s:g} s"
    except openai.APIConnectionError as fault:
        raise _describe_silence(config.url) from fault
    except (openai.APIError, httpx2.HTTPError, ValueError) as fault:
        error = f"{type(fault).__name__}: {fault}"
    latency = time.monotonic() - start
    hits = tuple(reading.hits)
    text = "" if error else "".join(reading.texts)
    return Answer(
        arm=arm.name,
        question_id=question.id,
        question=question.question,
        model=arm.model,
        text=text,
        citations=read_citations(text, reading.annotations, {hit.n for hit in hits}),
        hits=hits,
        searched=reading.searched,
        finish_reason=reading.finish_reason,
        prompt_tokens=reading.usage.get("prompt_tokens"),
        completion_tokens=reading.usage.get("completion_tokens"),
        ttft_s=None if reading.ttft_s is None else round(reading.ttft_s, 4),
        latency_s=round(latency, 4),
        asked_at=round(asked_at, 3),
        error=error,
    )


class _Reading:
    """What the chunks of one stream have told so far."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.annotations: list[dict[str, Any]] = []
        self.hits: list[Passage] = []
        self.searched = False
        self.usage: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.ttft_s: float | None = None

    def take(self, chunk: dict[str, Any], seconds: float) -> None:
        """Read one chunk that came after so many seconds."""
        self.usage = chunk.get("usage") or self.usage
        if isinstance(chunk.get("retrieval"), dict):
            self.searched = True
            names = [field.name for field in fields(Passage)]
            self.hits = [Passage(**{name: hit.get(name) for name in names}) for hit in chunk["retrieval"]["hits"]]
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                self.ttft_s = seconds if self.ttft_s is None else self.ttft_s
                self.texts.append(delta["content"])
            self.annotations += delta.get("annotations") or ()
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def read_citations(text: str, annotations: Sequence[Mapping[str, Any]], known: Collection[int]) -> tuple[int, ...]:
    """Return the numbers of the cited passages, each once, in the order of their first mark.

    Args:
        text: The answer.
        annotations: Its url_citations; each covers its mark `[n]`.
        known: Numbers of the passages; a mark that leads to none of them is left out.
    """
    numbers: dict[int, None] = {}
    for annotation in annotations:
        span = annotation["url_citation"]
        mark = MARK.fullmatch(text[span["start_index"] : span["end_index"]])
        if mark and int(mark[1]) in known:
            numbers[int(mark[1])] = None
    return tuple(numbers)
