"""A crowd of clients in a process of its own, so that what they cost is not taken for the gateway's.

Run as `python -m tests.fakes.crowd URL CLIENTS PAUSE_S`. The first line of standard input is a JSON list of requests,
[path, body], a body of null being a GET; client number n asks them all in turn, beginning with the n-th, again and
again, from the line «asking» on until standard input ends. Then it writes each answer as a line of JSON. Does not judge
them. `running_crowd` runs one for the time of a block.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

REPO = Path(__file__).resolve().parent.parent.parent
HEADERS = ("content-type", "retry-after")
"""Those that are told."""
END_S = 300


class Answer(NamedTuple):
    """What one client saw.

    Attributes:
        status: Of the answer.
        headers: Those of HEADERS.
        text: Its whole body.
        seconds: From the question to the body's end.
        began: When it was asked, by time.monotonic, which all processes share.
    """

    status: int
    headers: dict[str, str]
    text: str
    seconds: float
    began: float


@dataclass(slots=True)
class Crowd:
    """A crowd that asks.

    Attributes:
        process: Its process.
        answers: What it saw, once it has gone.
    """

    process: "subprocess.Popen[str]"
    answers: list[Answer] = field(default_factory=list)

    def pause(self) -> None:
        """Stop it where it stands."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it ask again."""
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def running_crowd(url: str, clients: int, pause_s: float, requests: Sequence[tuple[str, Any]]) -> Iterator[Crowd]:
    """Let clients ask without end for the time of the block.

    Args:
        url: Of the gateway.
        clients: How many.
        pause_s: What each of them waits between an answer and its next question.
        requests: Paths and bodies; a body of None is a GET.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.crowd", url, str(clients), str(pause_s)],
        env={**os.environ, "PYTHONPATH": str(REPO)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        crowd = Crowd(process)
        process.stdin.write(json.dumps(requests) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "asking\n"
        try:
            yield crowd
        finally:
            crowd.go_on()
            told, _ = process.communicate(timeout=END_S)
    assert process.returncode == 0
    crowd.answers = [Answer(*json.loads(line)) for line in told.splitlines()]


async def ask(
    session: aiohttp.ClientSession,
    stop: asyncio.Event,
    pause_s: float,
    requests: Iterator[tuple[str, Any]],
    answers: list[Answer],
) -> None:
    """Ask one thing after the other until it is called off; the last answer is waited for."""
    while not stop.is_set():
        path, body = next(requests)
        began = time.monotonic()
        async with session.request("GET" if body is None else "POST", path, json=body) as answer:
            text = await answer.text()
        headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
        answers.append(Answer(answer.status, headers, text, time.monotonic() - began, began))
        await asyncio.sleep(pause_s)


async def run(url: str, clients: int, pause_s: float, requests: list[tuple[str, Any]]) -> list[Answer]:
    """Let all of them ask until standard input ends; return the answers."""
    answers: list[Answer] = []
    stop = asyncio.Event()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=END_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        turns = [itertools.islice(itertools.cycle(requests), number, None) for number in range(clients)]
        asking = [asyncio.create_task(ask(session, stop, pause_s, turn, answers)) for turn in turns]
        sys.stdout.write("asking\n")
        sys.stdout.flush()
        stopping = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({stopping, *asking}, return_when=asyncio.FIRST_COMPLETED)  # a fault of one ends all
        stop.set()
        await asyncio.gather(*asking)
    return answers


def main() -> None:
    """Ask, then tell."""
    url, clients, pause_s = sys.argv[1:]
    requests = json.loads(sys.stdin.readline())
    for answer in asyncio.run(run(url, int(clients), float(pause_s), requests)):
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
