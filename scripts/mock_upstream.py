"""A vLLM made of bytes, for scripts/bench_gateway.py: prepared answers over raw sockets, which cost next to nothing.

    python scripts/mock_upstream.py --model NAME --uds PATH [--chunks 200]

Prints the TCP port that it listens on besides the unix socket. Standard library only. `/v1/chat/completions` answers
whole or, where the body says `"stream": true`, as a stream of so many events, each written by itself, `--pause-ms`
apart for requests whose text is «paced». Knows nothing of the gateway.
"""

import argparse
import asyncio
import json
import re

CREATED = 1_760_000_000
HEAD_END = b"\r\n\r\n"
STREAM = re.compile(rb'"stream":\s*true')
WANTS_USAGE = re.compile(rb'"include_usage":\s*true')
LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


def frame(status: bytes, kind: bytes, body: bytes) -> bytes:
    """Return a whole answer."""
    head = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


def frame_json(value: object) -> bytes:
    """Return a whole answer that holds JSON."""
    return frame(b"200 OK", b"application/json", json.dumps(value, separators=(",", ":")).encode())


def frame_event(data: bytes) -> bytes:
    """Return one server-sent event as a chunk of a body."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


class Answers:
    """Everything that the server says, made once."""

    def __init__(self, model: str, chunks: int) -> None:
        """Make the answers.

        Args:
            model: The name that requests hold.
            chunks: Events with text in a stream.
        """
        usage = {"prompt_tokens": 12, "total_tokens": 12 + chunks, "completion_tokens": chunks}
        common = {"id": "chatcmpl-0123456789abcdef", "created": CREATED, "model": model}
        words = [f" letters-{number:07}" for number in range(chunks)]  # no two alike: LiteLLM breaks off what repeats
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        self.health = frame(b"200 OK", b"text/plain", b"")
        self.not_found = frame(b"404 Not Found", b"application/json", b"{}")
        self.models = frame_json({"object": "list", "data": [{"id": model, "object": "model", "max_model_len": 4096}]})
        self.completion = frame_json({"id": "cmpl", "object": "text_completion", "choices": [], "model": model})
        self.whole = frame_json({**common, "object": "chat.completion", "choices": [choice], "usage": usage})
        self.stream_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

        def shape(delta: dict[str, str], finish: str | None = None) -> bytes:
            choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
            chunk = {**common, "object": "chat.completion.chunk", "choices": choices}
            return frame_event(json.dumps(chunk, separators=(",", ":")).encode())

        self.events = [shape({"role": "assistant", "content": ""}), *(shape({"content": word}) for word in words)]
        self.events.append(shape({}, "stop"))
        told = {**common, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        self.usage = frame_event(json.dumps(told, separators=(",", ":")).encode())
        self.done = frame_event(b"[DONE]") + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection: requests in, prepared bytes out."""

    def __init__(self, answers: Answers, pause_s: float) -> None:
        """Wait for a request."""
        self._answers = answers
        self._pause_s = pause_s
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End what is being streamed."""
        for stream in self._streams:
            stream.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer once a request is whole."""
        self._received += data
        while (end := self._received.find(HEAD_END)) >= 0:
            head = self._received[:end]
            length = LENGTH.search(head)
            stop = end + len(HEAD_END) + (int(length.group(1)) if length else 0)
            if len(self._received) < stop:
                return
            body, self._received = self._received[end + len(HEAD_END) : stop], self._received[stop:]
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if self._transport is None:
            return
        if path == b"/v1/chat/completions" and STREAM.search(body):
            stream = asyncio.ensure_future(self._stream(body))
            self._streams.add(stream)
            stream.add_done_callback(self._streams.discard)
            return
        by_path = {
            b"/v1/chat/completions": self._answers.whole,
            b"/v1/completions": self._answers.completion,
            b"/v1/models": self._answers.models,
            b"/health": self._answers.health,
        }
        self._transport.write(by_path.get(path, self._answers.not_found))

    async def _stream(self, body: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        pause_s = self._pause_s if b"paced" in body else 0.0
        transport.write(self._answers.stream_head)
        for event in self._answers.events:
            transport.write(event)
            await asyncio.sleep(pause_s)
        if WANTS_USAGE.search(body):
            transport.write(self._answers.usage)
        transport.write(self._answers.done)


async def serve(model: str, uds: str, chunks: int, pause_ms: float) -> None:
    """Listen on a unix socket and on a free port until the process is ended."""
    answers = Answers(model, chunks)
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(answers, pause_ms / 1000)

    await loop.create_unix_server(make, uds, backlog=1024)
    server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--pause-ms", type=float, default=1.0)
    options = parser.parse_args()
    asyncio.run(serve(options.model, options.uds, options.chunks, options.pause_ms))
