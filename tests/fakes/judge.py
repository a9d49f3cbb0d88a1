"""A scripted judge: an OpenAI-compatible server that answers RAGAS's prompts by rule, well or badly.

It reads the input that RAGAS writes at a prompt's end and tells by its words whether a text stands in a passage. It
takes `response_format` as vLLM does, counts tokens as words, and cuts answers off at `max_tokens`; tests/integration/
test_judge_contract.py holds it to the real server's shapes. Does not know evaluation/.
"""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODEL = "scripted-judge"
Rule = Callable[[dict[str, Any], str], dict[str, Any]]
"""Makes the answer to a schema: (the prompt's input or an empty dict, the whole prompt) → a JSON object."""


def stands_in(text: str, passage: str) -> int:
    """Return 1 when every word of a text stands in a passage."""
    words = set(re.findall(r"\w+", text.lower()))
    return int(bool(words) and words <= set(re.findall(r"\w+", passage.lower())))


def split_statements(given: dict[str, Any], _: str) -> dict[str, Any]:
    """Return each sentence as a statement."""
    return {"statements": [part.strip() for part in re.split(r"(?<=\.)\s+", given["answer"]) if part.strip()]}


def check_statements(given: dict[str, Any], _: str) -> dict[str, Any]:
    """Return a verdict on each statement."""
    return {
        "statements": [
            {"statement": one, "reason": "words", "verdict": stands_in(one, given["context"])}
            for one in given["statements"]
        ]
    }


def ask_back(given: dict[str, Any], _: str) -> dict[str, Any]:
    """Return a question that repeats the response."""
    return {"question": given["response"], "noncommittal": int("know" in given["response"])}


def check_passage(given: dict[str, Any], _: str) -> dict[str, Any]:
    """Return whether the answer stands in the passage."""
    return {"reason": "words", "verdict": stands_in(given["answer"], given["context"])}


def check_reference(given: dict[str, Any], _: str) -> dict[str, Any]:
    """Return whether the right answer stands in the passages."""
    found = {
        "statement": given["answer"],
        "reason": "words",
        "attributed": stands_in(given["answer"], given["context"]),
    }
    return {"classifications": [found]}


HONEST: dict[str, Rule] = {
    "StatementGeneratorOutput": split_statements,
    "NLIStatementOutput": check_statements,
    "AnswerRelevanceOutput": ask_back,
    "ContextPrecisionOutput": check_passage,
    "ContextRecallOutput": check_reference,
}


def always(verdict: int) -> dict[str, Rule]:
    """Return the rules of a judge that says the same of everything."""
    key = re.compile("verdict|attributed|noncommittal")

    def overwrite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: verdict if key.fullmatch(name) else overwrite(part) for name, part in value.items()}
        return [overwrite(part) for part in value] if isinstance(value, list) else value

    def bend(rule: Rule) -> Rule:
        return lambda given, prompt: dict(overwrite(rule(given, prompt)))

    return {name: bend(rule) for name, rule in HONEST.items()}


@dataclass(slots=True)
class ScriptedJudge:
    """A judge that listens.

    Attributes:
        url: Its base URL, with /v1.
        rules: How it answers, by the schema's name.
        spoil: Changes an answer's text before it is sent: (text, how often this prompt was asked before) → text.
        status: Answer with this status instead.
        requests: What it was asked.
        seen: How often each first message came.
    """

    url: str = ""
    rules: dict[str, Rule] = field(default_factory=lambda: dict(HONEST))
    spoil: Callable[[str, int], str] = lambda text, _: text
    status: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    async def list_models(self, _request: Request) -> Response:
        """List the one model."""
        return JSONResponse(
            {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}]}
        )

    async def chat(self, request: Request) -> Response:
        """Answer by rule."""
        body = await request.json()
        self.requests.append(body)
        if body["model"] != MODEL:
            return refuse(404, f"The model `{body['model']}` does not exist.")
        if self.status is not None:
            return refuse(self.status, "scripted")
        prompt = body["messages"][0]["content"]
        before = self.seen.get(prompt, 0)
        self.seen[prompt] = before + 1
        shape = body["response_format"]["json_schema"]
        text = self.spoil(json.dumps(self.rules[shape["name"]](read_input(prompt), prompt)), before)
        words = re.findall(r"\s*\S+", text)
        kept = words[: body["max_tokens"]]
        message = {"role": "assistant", "content": "".join(kept)}
        finish = "stop" if len(kept) == len(words) else "length"
        asked = sum(len(one["content"].split()) for one in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": len(kept), "total_tokens": asked + len(kept)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        common = {"id": "chatcmpl-judge", "object": "chat.completion", "created": 1, "model": MODEL}
        return JSONResponse({**common, "choices": [choice], "usage": usage})


def read_input(prompt: str) -> dict[str, Any]:
    """Return the input that RAGAS writes at a prompt's end; empty where there is none."""
    found = re.search(r"\ninput: (\{.*\})\nOutput: $", prompt[prompt.rfind("\ninput: ") :], re.DOTALL)
    return dict(json.loads(found[1])) if found else {}


def refuse(status: int, message: str) -> JSONResponse:
    """Return vLLM's error answer."""
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


@contextmanager
def scripted_judge() -> Iterator[ScriptedJudge]:
    """Run a judge on a free port for the time of the block."""
    judge = ScriptedJudge()
    routes = [Route("/v1/models", judge.list_models), Route("/v1/chat/completions", judge.chat, methods=["POST"])]
    listener = socket.create_server(("127.0.0.1", 0))
    judge.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_config=None, timeout_graceful_shutdown=1))

    async def serve() -> None:
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield judge
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
