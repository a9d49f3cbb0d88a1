"""A scripted vLLM: what serve/ needs of vLLM's server, without a model.

Run as `python -m tests.fakes.vllm --uds PATH --served-model-name NAME` (or --port instead of --uds), with its key in
VLLM_API_KEY, as the real one. It comes up once the file of --hold is gone.
`POST /fake/script` sets how it answers from then on, `GET /fake/state` tells what it saw. The contract test in
tests/integration/ holds it to the behaviour of the real server. Does not know the gateway.
"""

import argparse
import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

CONTEXT_LENGTH = 4096
"""As conf/engine/cpu.yaml starts the real one."""
VOCABULARY = 49_152
"""Token ids, as SmolLM2 has them."""
DEFAULT_MAX_TOKENS = 16
"""Of a completion that does not say, as at OpenAI."""
UNSAID = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
"""What a message of vLLM's holds besides what was said."""


@dataclass(slots=True)
class Script:
    """How the fake answers.

    Attributes:
        reply: What it says; None repeats the last message.
        calls: Functions that it calls after that, each with name and arguments.
        first_delay_s: Silence before the first byte of an answer.
        token_delay_s: Silence between tokens.
        die_after: Kill the process after so many tokens.
        break_after: Close the connection after so many tokens.
        error_after: Send vLLM's error event, then [DONE], after so many tokens, as vLLM does.
        garbage_after: Send what is no JSON after so many tokens.
        status: Answer chats with this status and vLLM's error body.
        is_sick: Answer /health with 503, as vLLM does when its engine core is dead.
        is_deaf: Never answer /health.
        is_hung: Take requests for answers, and never answer any.
    """

    reply: str | None = None
    calls: list[dict[str, str]] = field(default_factory=list)
    first_delay_s: float = 0.0
    token_delay_s: float = 0.0
    die_after: int | None = None
    break_after: int | None = None
    error_after: int | None = None
    garbage_after: int | None = None
    status: int | None = None
    is_sick: bool = False
    is_deaf: bool = False
    is_hung: bool = False


@dataclass(slots=True)
class State:
    """What the fake has seen."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    running: int = 0
    aborted: int = 0


@dataclass(frozen=True, slots=True)
class Chunks:
    """A streamed answer, before it is misbehaved with.

    Attributes:
        common: What every chunk holds.
        opening: Chunks before the first token.
        spoken: A chunk for each token.
        closing: Chunks after the last.
    """

    common: dict[str, Any]
    opening: list[dict[str, Any]]
    spoken: list[dict[str, Any]]
    closing: list[dict[str, Any]]


class BrokenOffError(Exception):
    """Raised in a stream to make uvicorn cut the connection."""


class FakeVllm:
    """The fake server: its routes as methods."""

    def __init__(self, model: str, key: str, adapter_shift: int = 1) -> None:
        """Make a server.

        Args:
            model: Name of the base model.
            key: What requests below /v1 must carry.
            adapter_shift: What an adapter adds to each token id that the base would answer.
        """
        self.model = model
        self.key = key
        self.adapter_shift = adapter_shift
        self.script = Script()
        self.state = State()
        routes = [
            Route("/health", self.get_health),
            Route("/metrics", self.get_metrics),
            Route("/fake/script", self.set_script, methods=["POST"]),
            Route("/fake/state", self.get_state),
            Route("/v1/models", self.list_models),
            Route("/v1/load_lora_adapter", self.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload_adapter, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; below /v1 only with the key, as vLLM does."""
        is_open = scope["type"] != "http" or not scope["path"].startswith("/v1")
        if is_open or Headers(scope=scope).get("authorization") == f"Bearer {self.key}":
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)

    async def get_health(self, _request: Request) -> Response:
        """Tell whether the engine core is alive."""
        if self.script.is_deaf:
            await asyncio.sleep(3600)
        return Response(status_code=503 if self.script.is_sick else 200)

    async def get_metrics(self, _request: Request) -> Response:
        """Tell what vLLM tells of itself, in Prometheus' text format: a gauge, a counter and a histogram."""
        labels = f'engine="0",model_name="{self.model}"'
        lines = [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {float(self.state.running)}",
            "# HELP vllm:prompt_tokens_total Number of prefill tokens processed.",
            "# TYPE vllm:prompt_tokens_total counter",
            f"vllm:prompt_tokens_total{{{labels}}} 7.0",
            "# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.",
            "# TYPE vllm:time_to_first_token_seconds histogram",
            f'vllm:time_to_first_token_seconds_bucket{{{labels},le="+Inf"}} 1.0',
            f"vllm:time_to_first_token_seconds_count{{{labels}}} 1.0",
            f"vllm:time_to_first_token_seconds_sum{{{labels}}} 0.1",
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def set_script(self, request: Request) -> Response:
        """Take a new script."""
        self.script = Script(**await request.json())
        return Response()

    async def get_state(self, _request: Request) -> Response:
        """Tell what was seen."""
        return JSONResponse({"pid": os.getpid(), **asdict(self.state)})

    async def list_models(self, _request: Request) -> Response:
        """List the base model and the adapters."""
        base = {"id": self.model, "object": "model", "max_model_len": CONTEXT_LENGTH}
        adapters = [{"id": name, "object": "model", "max_model_len": None} for name in self.state.adapters]
        return JSONResponse({"object": "list", "data": [base, *adapters]})

    async def load_adapter(self, request: Request) -> Response:
        """Take an adapter."""
        body = await request.json()
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.state.adapters:
            return refuse(400, f"The lora adapter '{name}' has already been loaded.")
        if not has_adapter(folder):
            return refuse(404, f"Loading lora {name} failed: No adapter found for {folder}")
        self.state.adapters[name] = str(folder)
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """Drop an adapter."""
        name = (await request.json())["lora_name"]
        if self.state.adapters.pop(name, None) is None:
            return refuse(404, f"The lora adapter '{name}' cannot be found.")
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        """Answer a chat as scripted."""
        body = await request.json()
        self.state.requests.append(body)
        texts = [read_content(message) for message in body["messages"]]
        prompt = sum(len(text.split()) for text in texts)
        fault = self.find_fault(body, prompt)
        if fault is not None:
            return fault
        reply = texts[-1] if self.script.reply is None else self.script.reply
        tokens, finish = cut(split(reply), body.get("max_completion_tokens") or body.get("max_tokens"))
        common = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": body["model"]}
        finish = "tool_calls" if self.script.calls else finish
        message = {"role": "assistant", "content": "".join(tokens), **UNSAID, **shape_called(self.script.calls)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        answer = {**common, "choices": [choice], "usage": shape_usage(prompt, len(tokens))}
        common["object"] += ".chunk"

        def shape(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
            chosen = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return {**common, "choices": [chosen]}

        calls = [piece for index, call in enumerate(self.script.calls) for piece in shape_call(index, call)]
        opening, spoken = [shape({"role": "assistant", "content": ""})], [shape({"content": token}) for token in tokens]
        closing = [*(shape({"tool_calls": [piece]}) for piece in calls), shape({}, finish)]
        return await self.respond(request, body, answer, Chunks(common, opening, spoken, closing))

    async def complete(self, request: Request) -> Response:
        """Go on from prompts: token ids with the same ids at once, which an adapter shifts; texts as scripted."""
        body = await request.json()
        if self.script.is_hung:
            await asyncio.sleep(3600)
        self.state.requests.append(body)
        prompts = list_prompts(body["prompt"])
        sizes = [len(prompt.split()) if isinstance(prompt, str) else len(prompt) for prompt in prompts]
        fault = self.find_fault(body, max(sizes)) or find_unknown_id(prompts)
        if fault is not None:
            return fault
        asked = [prompt for prompt in prompts for _ in range(body.get("n") or 1)]
        choices = [self.go_on(index, body, prompt) for index, prompt in enumerate(asked)]
        common = {"id": "cmpl-fake", "object": "text_completion", "created": 1, "model": body["model"]}
        said = sum(len(tokens) for _, tokens in choices)
        answer = {**common, "choices": [choice for choice, _ in choices], "usage": shape_usage(sum(sizes), said)}
        if not isinstance(prompts[0], str) and not body.get("stream"):
            return JSONResponse(answer)  # a canary, most of the time
        spoken = [{**common, "choices": [part]} for choice, tokens in choices for part in share_out(choice, tokens)]
        return await self.respond(request, body, answer, Chunks(common, [], spoken, []))

    def go_on(self, index: int, body: dict[str, Any], prompt: str | list[int]) -> tuple[dict[str, Any], list[str]]:
        """Return one choice, and its tokens as texts."""
        ids: list[int] | None = None
        if isinstance(prompt, str):
            reply = prompt if self.script.reply is None else self.script.reply
            tokens, finish = cut(split(reply), body.get("max_tokens") or DEFAULT_MAX_TOKENS)
        else:
            shift = self.adapter_shift if body["model"] in self.state.adapters else 0
            words, finish = cut([str(token + shift) for token in prompt], body.get("max_tokens") or DEFAULT_MAX_TOKENS)
            ids, tokens = [int(word) for word in words], [f"t{word}" for word in words]
            finish = "length" if len(tokens) == body.get("max_tokens") else finish
        head = (
            ""
            if not body.get("echo")
            else prompt
            if isinstance(prompt, str)
            else "".join(f"t{token}" for token in prompt)
        )
        logprobs = None if body.get("logprobs") is None else shape_logprobs(tokens)
        choice = {"index": index, "text": head + "".join(tokens), "logprobs": logprobs, "finish_reason": finish}
        choice |= {"stop_reason": None, "token_ids": ids if body.get("return_token_ids") else None}
        return choice, tokens

    async def respond(self, request: Request, body: dict[str, Any], answer: dict[str, Any], chunks: Chunks) -> Response:
        """Send an answer, streamed or whole, as scripted."""
        self.state.running += 1
        if self.script.is_hung:
            self.script = replace(self.script, first_delay_s=3600)
        if body.get("stream"):
            return StreamingResponse(self.stream(body, answer, chunks), media_type="text/event-stream")
        try:
            if not await self.stay_silent(request):
                return Response(status_code=499)
            return JSONResponse(answer)
        finally:
            self.state.running -= 1

    def find_fault(self, body: dict[str, Any], prompt: int) -> Response | None:
        """Refuse what vLLM refuses."""
        if body["model"] != self.model and body["model"] not in self.state.adapters:
            return refuse(404, f"The model `{body['model']}` does not exist.", param="model")
        if prompt > CONTEXT_LENGTH:
            return refuse(400, f"This model's maximum context length is {CONTEXT_LENGTH} tokens.", param="input_tokens")
        return None if self.script.status is None else refuse(self.script.status, "scripted")

    async def stay_silent(self, request: Request) -> bool:
        """Wait as scripted; return whether the client is still there."""
        if self.script.die_after is not None:
            os._exit(137)
        for _ in range(round(self.script.first_delay_s / 0.02)):
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.state.aborted += 1
                return False
        return True

    async def stream(self, body: dict[str, Any], answer: dict[str, Any], chunks: Chunks) -> AsyncIterator[str]:
        """Yield an answer's events as scripted."""
        is_finished = False
        script = self.script
        try:
            await asyncio.sleep(script.first_delay_s)
            for chunk in chunks.opening:
                yield encode(chunk)
            for index, chunk in enumerate(chunks.spoken):
                yield self.misbehave(index) + encode(chunk)
                await asyncio.sleep(script.token_delay_s)
                if index + 1 == script.error_after:
                    error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
                    yield encode({"error": error})
                    yield "data: [DONE]\n\n"
                    return
            for chunk in chunks.closing:
                yield encode(chunk)
            if (body.get("stream_options") or {}).get("include_usage"):
                yield encode({**chunks.common, "choices": [], "usage": answer["usage"]})
            yield "data: [DONE]\n\n"
            is_finished = True
        finally:
            self.state.running -= 1
            self.state.aborted += not is_finished

    def misbehave(self, index: int) -> str:
        """Die, break off or send garbage before a token, where the script says so."""
        if index == self.script.die_after:
            os._exit(137)
        if index == self.script.break_after:
            raise BrokenOffError
        return "data: {{{\n\n" if index == self.script.garbage_after else ""


def encode(chunk: dict[str, Any]) -> str:
    """Return one event of a stream."""
    return f"data: {json.dumps(chunk)}\n\n"


def read_content(message: dict[str, Any]) -> str:
    """Return what a message says; parts are read one after the other."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def split(text: str) -> list[str]:
    """Return a text's tokens: its words, each with the space before it."""
    return re.findall(r"\s*\S+|\s+\Z", text)


def cut(tokens: list[str], limit: int | None) -> tuple[list[str], str]:
    """Return as many tokens as are wanted, and why they end."""
    limit = limit or len(tokens)
    return tokens[:limit], "stop" if len(tokens) <= limit else "length"


def list_prompts(prompt: Any) -> list[str | list[int]]:
    """Return the prompts of a completion as a list, whichever of OpenAI's four forms they came in."""
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if is_one else prompt


def find_unknown_id(prompts: list[str | list[int]]) -> Response | None:
    """Refuse token ids that are outside of the vocabulary."""
    ids = [token for prompt in prompts if not isinstance(prompt, str) for token in prompt]
    if max(ids, default=0) < VOCABULARY:
        return None
    return refuse(400, f"Token id {max(ids)} is out of vocabulary", param="prompt")


def share_out(choice: dict[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    """Return a completion's choice as vLLM streams it: a token at a time, the last with the reason why it ends."""
    head = choice["text"][: len(choice["text"]) - len("".join(tokens))]
    has_logprobs = choice["logprobs"] is not None
    parts = [
        {**choice, "text": token, "logprobs": shape_logprobs([token]) if has_logprobs else None, "finish_reason": None}
        for token in tokens or [""]
    ]
    parts[0]["text"] = head + parts[0]["text"]
    parts[-1]["finish_reason"] = choice["finish_reason"]
    return parts


def shape_logprobs(tokens: list[str]) -> dict[str, Any]:
    """Return a completion's log-probabilities, the same for every token."""
    offsets = [len("".join(tokens[:place])) for place in range(len(tokens))]
    return {
        "text_offset": offsets,
        "token_logprobs": [-0.5] * len(tokens),
        "tokens": tokens,
        "top_logprobs": [{token: -0.5} for token in tokens],
    }


def shape_usage(prompt: int, said: int) -> dict[str, int]:
    """Return what an answer took in tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def shape_called(calls: list[dict[str, str]]) -> dict[str, Any]:
    """Return what a whole message holds of calls; vLLM leaves the field out where there are none."""
    called = [
        {"id": f"chatcmpl-tool-{index}", "type": "function", "function": call} for index, call in enumerate(calls)
    ]
    return {"tool_calls": called} if called else {}


def shape_call(index: int, call: dict[str, str]) -> list[dict[str, Any]]:
    """Return a call as vLLM streams it: its name, then its arguments in pieces."""
    head = {"id": f"chatcmpl-tool-{index}", "type": "function", "function": {"name": call["name"], "arguments": ""}}
    pieces = re.findall(r".{1,8}", call["arguments"])
    return [{"index": index, **head}, *({"index": index, "function": {"arguments": piece}} for piece in pieces)]


def has_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (folder / "adapter_config.json").is_file()


def refuse(status: int, message: str, param: str | None = None) -> JSONResponse:
    """Return vLLM's error answer."""
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


def main() -> None:
    """Serve on the socket of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--served-model-name", default="base")
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--hold", type=Path)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--adapter-shift", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.fail:
        raise SystemExit("no such model: scripted to fail")
    fake = FakeVllm(arguments.served_model_name, os.environ["VLLM_API_KEY"], arguments.adapter_shift)
    server = uvicorn.Server(uvicorn.Config(fake, uds=arguments.uds, port=arguments.port, log_level="warning"))

    async def serve() -> None:
        await asyncio.sleep(arguments.start_delay)
        while arguments.hold is not None and arguments.hold.exists():  # noqa: ASYNC110  (a file tells nobody)
            await asyncio.sleep(0.02)
        await server.serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
