"""A language model that answers in JSON of a given schema, behind any OpenAI-compatible server.

Small models answer beside the point, so nothing is trusted: decoding is constrained by the schema where the server
can do that, the answer is checked against it all the same, the model is told what was wrong and asked again, and what
stays unusable is a fault that the caller counts. Does not know what it is asked for (ragas_scores.py and testset.py
do).
"""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx2
import jsonschema
import openai
import referencing
from pydantic import BaseModel, ValidationError

from core.control_tokens import disarm_for_any_model
from core.errors import EngineError, EngineUnavailable, InputError, ModelNotFound

KEY_VARIABLE = "LOAM_JUDGE_API_KEY"
"""Holds the key of the judge's or writer's server; LOAM_API_KEY is the evaluated endpoint's and never goes there."""
VERDICT_FIELDS = frozenset({"verdict", "attributed", "noncommittal", "answerable"})
"""Fields that are 0 or 1; RAGAS's own models let any number through, and the score then leaves 0 to 1."""
M = TypeVar("M", bound=BaseModel)


class UnusableAnswer(EngineError):
    """The model gave no usable answer, however often it was asked."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked.

    Attributes:
        max_tokens: Most tokens of one answer.
        temperature: 0 to 2.
        timeout_s: Longest wait for one answer.
        retries: How often an unusable answer is asked for again.
        concurrency: Requests at the same time.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    timeout_s: float = 300.0
    retries: int = 2
    concurrency: int = 4


def find_asking_faults(group: str, asking: Asking) -> list[str]:
    """Return what is out of range, each with its key in a configuration group."""
    return [
        f"{group}.{name}: wanted {wanted}, found {value!r}"
        for name, is_good, wanted, value in (
            ("max_tokens", asking.max_tokens >= 16, "at least 16", asking.max_tokens),
            ("temperature", 0 <= asking.temperature <= 2, "0 to 2", asking.temperature),
            ("timeout_s", asking.timeout_s > 0, "above 0", asking.timeout_s),
            ("retries", 0 <= asking.retries <= 10, "0 to 10", asking.retries),
            ("concurrency", 1 <= asking.concurrency <= 256, "1 to 256", asking.concurrency),
        )
        if not is_good
    ]


@dataclass(slots=True)
class Usage:
    """What a model has cost so far.

    Attributes:
        calls: Requests that were answered.
        repeated: Of these, asked again after an unusable answer.
        faults: Questions that never got a usable answer.
        prompt_tokens: Sum, as the server counted.
        completion_tokens: Sum, as the server counted.
    """

    calls: int = 0
    repeated: int = 0
    faults: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class StructuredModel:
    """One model of one server; holds its connections. Use it as `async with`."""

    def __init__(self, url: str, model: str, asking: Asking) -> None:
        """Connect to nothing yet.

        Args:
            url: The server's base URL, with /v1.
            model: The server's name of the model.
            asking: How it is asked.
        """
        self.url, self.model, self.asking, self.usage = url, model, asking, Usage()
        self._slots = asyncio.Semaphore(asking.concurrency)
        self._client = make_client(url, os.environ.get(KEY_VARIABLE, "none"), asking.timeout_s)

    async def __aenter__(self) -> Self:
        """Return the model itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, prompt: str, kind: type[M]) -> M:
        """Return the model's answer to a prompt.

        Args:
            prompt: All that the model is told. Documents and answers stand in it: control tokens are made words, and
                none ends the message.
            kind: What the answer must be.

        Raises:
            UnusableAnswer: Every answer was unusable, or the server refused the request.
            EngineUnavailable: The server cannot be reached.
        """
        schema = tighten_schema(kind.model_json_schema())
        shape = {"type": "json_schema", "json_schema": {"name": kind.__name__, "schema": schema, "strict": True}}
        messages: list[Any] = [{"role": "user", "content": disarm_for_any_model(prompt)}]
        problem = ""
        for attempt in range(self.asking.retries + 1):
            async with self._slots:
                text, problem = await self._complete(messages, shape)
            self.usage.repeated += attempt > 0
            if not problem:
                try:
                    return parse_reply(text, kind, schema)
                except ValueError as error:
                    problem = str(error)
            complaint = f"That is not usable: {problem}. Return the JSON object only."
            messages = [
                messages[0],
                {"role": "assistant", "content": disarm_for_any_model(text) or "{}"},
                {"role": "user", "content": disarm_for_any_model(complaint)},
            ]
        self.usage.faults += 1
        raise UnusableAnswer(f"{self.model}: {problem}")

    async def _complete(self, messages: list[Any], shape: Any) -> tuple[str, str]:
        """Return one answer's text, and what is wrong with it as a whole or an empty text."""
        try:
            answer = await self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=self.asking.temperature,
                max_tokens=self.asking.max_tokens,
                response_format=shape,
            )
        except openai.APITimeoutError:
            return "", f"no answer within {self.asking.timeout_s:g} s"
        except openai.APIConnectionError as error:
            raise describe_silence(self.url) from error
        except openai.APIStatusError as error:
            if error.status_code < 500:
                self.usage.faults += 1
                raise UnusableAnswer(f"{self.model}: the server refused the request: {error.message}") from error
            return "", f"the server failed: {error.message}"
        except httpx2.HTTPError as error:
            return "", f"the connection broke off ({type(error).__name__})"
        self.usage.calls += 1
        if answer.usage is not None:
            self.usage.prompt_tokens += answer.usage.prompt_tokens
            self.usage.completion_tokens += answer.usage.completion_tokens
        choice = answer.choices[0]
        text = choice.message.content or ""
        if choice.finish_reason == "length":
            return text[:2000], f"the answer was cut off at {self.asking.max_tokens} tokens"
        return text, ""


def make_client(url: str, key: str, timeout_s: float) -> openai.AsyncOpenAI:
    """Return a client of an OpenAI-compatible server; 408, 409, 429 and 5xx are asked again twice."""
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=2, timeout=timeout_s)


def describe_silence(url: str) -> EngineUnavailable:
    """Return the error for a server that cannot be reached."""
    return EngineUnavailable(
        f"{url}: wanted an OpenAI-compatible server, found none that answers. Start it and give the same command "
        "again: it goes on. A judge: python serve/run.py model=llama_3_1_8b gateway.port=8001; without one: judge=none."
    )


def parse_reply(text: str, kind: type[M], schema: dict[str, Any]) -> M:
    """Return an answer as what it must be; text around the outermost JSON object is forgiven.

    Raises:
        ValueError: It is something else.
    """
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("found no JSON object")
    try:
        value = json.loads(text[start : end + 1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found no whole JSON object ({error})") from error
    fault = next(jsonschema.Draft202012Validator(schema, registry=referencing.Registry()).iter_errors(value), None)
    if fault is not None:
        raise ValueError(f"{'.'.join(map(str, fault.absolute_path)) or 'object'}: {fault.message[:200]}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"])) from error


def tighten_schema(schema: Any) -> Any:
    """Return a pydantic schema as constrained decoding wants it: no foreign keys, and verdicts that are 0 or 1."""
    if isinstance(schema, list):
        return [tighten_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {key: tighten_schema(part) for key, part in schema.items()}
    if isinstance(properties := tight.get("properties"), dict) and tight.get("type") == "object":
        tight["additionalProperties"] = False
        for name in VERDICT_FIELDS & properties.keys():
            properties[name] = {**properties[name], "enum": [0, 1]}
    return tight


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as an endpoint lists it; other servers than ours tell no kind and no target."""

    name: str
    kind: str | None
    target: str | None


async def list_served(url: str, key: str, timeout_s: float = 30.0) -> list[ServedModel]:
    """Return what an endpoint serves.

    Raises:
        EngineUnavailable: It cannot be reached.
        InputError: It refuses to tell.
    """
    async with make_client(url, key, timeout_s) as client:
        try:
            models = [model.to_dict() async for model in client.models.list()]
        except openai.APIConnectionError as error:
            raise describe_silence(url) from error
        except openai.APIError as error:
            raise InputError(
                f"{url}: wanted the list of models, found a refusal: {error.message}. Check the URL (it ends in /v1) "
                "and the key."
            ) from error
    return [ServedModel(str(one["id"]), _to_text(one.get("kind")), _to_text(one.get("target"))) for one in models]


def _to_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def choose_model(served: Sequence[ServedModel], wanted: str | None, url: str, key: str) -> str:
    """Return a model's name: as it was given under a configuration key, else the only base model that is served.

    Raises:
        ModelNotFound: It is not served, or nothing says which.
    """
    chats = [model.name for model in served if model.kind in (None, "base")]
    if wanted is not None:
        if wanted not in [model.name for model in served]:
            raise ModelNotFound(
                f"{key}: wanted {wanted} at {url}, found {', '.join(chats) or 'none'}. Give one of these.",
                param=key,
            )
        return wanted
    if len(chats) != 1:
        raise ModelNotFound(
            f"{key}: wanted the one model at {url}, found {', '.join(chats) or 'none'}. Name one.", param=key
        )
    return chats[0]


def find_base(served: Sequence[ServedModel], name: str) -> str:
    """Return the base model behind a name: what an assistant or alias stands for, what an adapter was trained on."""
    targets = {model.name: model.target for model in served}
    seen = set()
    while (target := targets.get(name)) and target != name and name not in seen:
        seen.add(name)
        name = target
    return name.split(":")[1] if name.startswith("ft:") and name.count(":") > 1 else name
