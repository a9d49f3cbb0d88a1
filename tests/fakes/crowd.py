"""A crowd of clients in a process of its own, so that what they cost is not taken for the gateway's.

Run as `python -m tests.fakes.crowd URL CLIENTS PAUSE_S REQUESTS`, where REQUESTS is a JSON list of [path, body]: client
number n asks the n-th of them, again and again, from the line «asking» on until standard input ends. Then it writes
each answer as a line of JSON: status, headers, text, seconds. Does not judge them.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

HEADERS = ("content-type", "retry-after")
"""Those that are told."""


async def ask(
    session: aiohttp.ClientSession, stop: asyncio.Event, pause_s: float, path: str, body: Any, answers: list[Any]
) -> None:
    """Ask one thing again and again until it is called off; the last answer is waited for."""
    while not stop.is_set():
        start = time.monotonic()
        async with session.post(path, json=body) as answer:
            text = await answer.text()
        headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
        answers.append([answer.status, headers, text, time.monotonic() - start])
        await asyncio.sleep(pause_s)


async def run(url: str, clients: int, pause_s: float, requests: list[tuple[str, Any]]) -> list[Any]:
    """Let all of them ask until standard input ends; return the answers."""
    answers: list[Any] = []
    stop = asyncio.Event()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        asking = [
            asyncio.create_task(ask(session, stop, pause_s, *requests[number % len(requests)], answers))
            for number in range(clients)
        ]
        sys.stdout.write("asking\n")
        sys.stdout.flush()
        stopping = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({stopping, *asking}, return_when=asyncio.FIRST_COMPLETED)  # a fault of one ends all
        stop.set()
        await asyncio.gather(*asking)
    return answers


def main() -> None:
    """Ask, then tell."""
    url, clients, pause_s, requests = sys.argv[1:]
    for answer in asyncio.run(run(url, int(clients), float(pause_s), json.loads(requests))):
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
