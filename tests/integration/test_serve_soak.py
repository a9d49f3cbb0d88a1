"""Mixed traffic while vLLM is killed again and again: nothing but the promised errors, and nothing grows. Promise A4.

Ten minutes with LOAM_TEST_FULL=1, as long as LOAM_SOAK_S says (`make soak`: an hour), a few seconds otherwise. The seed
is printed and replays with LOAM_TEST_SEED.
"""

import json
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve.keys import create_key
from tests.fakes.engine import BASE
from tests.fakes.gateway import ALIAS, PATIENCE_S, RunningGateway, searching_gateway

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
SOAK_S = float(os.environ.get("LOAM_SOAK_S", "600" if IS_FULL else "6"))
KILL_EVERY_S = min(30.0, SOAK_S / 3)
LEAST_KILLS = 2
CLIENTS = 8
WARM_UP_SHARE = 0.2
"""Of the time, before memory is measured: pools, caches and connections are made in it."""


class Visitor:
    """One client with a key of its own, who asks for whatever comes to mind."""

    def __init__(self, gateway: RunningGateway, seed: int) -> None:
        """Make the key."""
        _, token = create_key(gateway.database, f"visitor-{secrets.token_hex(4)}")
        self.client = httpx.Client(
            base_url=gateway.url, headers={"authorization": f"Bearer {token}"}, timeout=httpx.Timeout(PATIENCE_S)
        )
        self.chance = random.Random(seed)
        self.seen: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []

    def ask_once(self) -> None:
        """Do one thing, and judge its answers."""
        what: Callable[[], None] = self.chance.choice(
            [self.chat, self.chat, self.stream, self.stream, self.leave, self.complete, self.respond, self.keep_file,
             self.search, self.blunder]
        )  # fmt: skip
        what()

    def send(self, name: str, method: str, path: str, allowed: set[int], **options: Any) -> httpx.Response:
        """Send a request; note an answer that was not promised."""
        answer = self.client.request(method, path, **options)
        self.seen[name, answer.status_code] += 1
        if answer.status_code not in allowed:
            self.faults.append(f"{name}: {answer.status_code} {answer.text[:300]}")
        if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
            self.faults.append(f"{name}: no Retry-After")
        return answer

    def body(self, **changes: Any) -> dict[str, Any]:
        """Return a chat."""
        words = " ".join(self.chance.choices(["warranty", "pump", "frost", "days"], k=self.chance.randrange(1, 40)))
        return {"model": BASE, "messages": [{"role": "user", "content": words}], **changes}

    def chat(self) -> None:
        """Ask, whole."""
        body = self.body()
        answer = self.send("chat", "POST", "/v1/chat/completions", {200, 503}, json=body)
        if answer.status_code == 200:
            said = answer.json()["choices"][0]["message"]["content"]
            if said != body["messages"][0]["content"]:
                self.faults.append(f"chat: another's answer: {said[:100]}")

    def stream(self) -> None:
        """Ask, streamed."""
        answer = self.send("stream", "POST", "/v1/chat/completions", {200, 503}, json=self.body(stream=True))
        if answer.status_code == 200:
            is_done, is_error = answer.text.endswith("data: [DONE]\n\n"), 'data: {"error"' in answer.text
            if is_done == is_error:
                self.faults.append(f"stream: a false end: {answer.text[-300:]}")

    def leave(self) -> None:
        """Ask, and go away within the answer."""
        with self.client.stream("POST", "/v1/chat/completions", json=self.body(stream=True)) as answer:
            self.seen["leave", answer.status_code] += 1
            for _ in answer.iter_raw():
                break

    def complete(self) -> None:
        """Have a text gone on from."""
        prompt = self.body()["messages"][0]["content"]
        body = {"model": BASE, "prompt": prompt, "max_tokens": 100}
        answer = self.send("complete", "POST", "/v1/completions", {200, 503}, json=body)
        if answer.status_code == 200 and answer.json()["choices"][0]["text"] != prompt:
            self.faults.append(f"complete: another's answer: {answer.text[:300]}")

    def respond(self) -> None:
        """Ask for a response twice with one key, read it, delete it."""
        body = {"model": BASE, "input": self.body()["messages"][0]["content"]}
        options: dict[str, Any] = {"json": body, "headers": {"idempotency-key": secrets.token_hex(8)}}
        made = self.send("respond", "POST", "/v1/responses", {200, 503}, **options)
        if made.status_code == 200:
            again = self.send("repeat", "POST", "/v1/responses", {200}, **options)
            if again.json() != made.json():
                self.faults.append(f"repeat: another response: {again.text[:300]}")
            self.send("delete", "DELETE", f"/v1/responses/{made.json()['id']}", {200})

    def keep_file(self) -> None:
        """Upload, read back, delete."""
        content = self.chance.randbytes(self.chance.randrange(1, 200_000))
        form: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": ("a.bin", content)}}
        made = self.send("upload", "POST", "/v1/files", {200}, **form)
        if made.status_code == 200:
            file_id = made.json()["id"]
            back = self.send("content", "GET", f"/v1/files/{file_id}/content", {200})
            if back.content != content:
                self.faults.append("content: other bytes than were sent")
            self.send("delete", "DELETE", f"/v1/files/{file_id}", {200})

    def search(self) -> None:
        """Make a store of one file, find what it says, delete both."""
        canary = f"canary{self.chance.randrange(10**9)}"
        form: dict[str, Any] = {"data": {"purpose": "assistants"}, "files": {"file": ("a.txt", canary.encode())}}
        file_id = self.send("upload", "POST", "/v1/files", {200}, **form).json()["id"]
        store = self.send("store", "POST", "/v1/vector_stores", {200}, json={"file_ids": [file_id]}).json()["id"]
        deadline = time.monotonic() + PATIENCE_S
        while self.client.get(f"/v1/vector_stores/{store}").json()["status"] != "completed":
            if time.monotonic() > deadline:
                self.faults.append(f"store: not completed within {PATIENCE_S} s")
                break
            time.sleep(0.05)
        found = self.send("search", "POST", f"/v1/vector_stores/{store}/search", {200}, json={"query": canary})
        if found.status_code == 200 and canary not in found.text:
            self.faults.append("search: did not find what is there")
        self.send("delete", "DELETE", f"/v1/vector_stores/{store}", {200})
        self.send("delete", "DELETE", f"/v1/files/{file_id}", {200})

    def blunder(self) -> None:
        """Ask for what is refused."""
        self.send("blunder", "POST", "/v1/chat/completions", {400, 404}, json=self.body(n=0, model=ALIAS))


def take_stock(folder: Path) -> tuple[float, int, int]:
    """Return memory in MiB, open files and left-over uploads of this process, which the gateway runs in."""
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds(), len(list((folder / "files").glob("*")))


@pytest.mark.timeout(SOAK_S + 300)
def test_a_gateway_under_chaos_keeps_its_promises(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("LOAM_TEST_SEED", random.SystemRandom().randrange(2**32) if IS_FULL else 20261126))
    sys.stdout.write(f"seed {seed}\n")
    stop = threading.Event()
    with searching_gateway(tmp_path) as gateway:
        gateway.script(token_delay_s=0.001)
        visitors = [Visitor(gateway, seed + number) for number in range(CLIENTS)]

        def visit(visitor: Visitor) -> None:
            while not stop.is_set():
                visitor.ask_once()

        with ThreadPoolExecutor(CLIENTS) as pool:
            visiting = [pool.submit(visit, visitor) for visitor in visitors]
            try:
                stocks = watch(gateway, random.Random(seed), tmp_path)
            finally:
                stop.set()
            for one in visiting:
                one.result()
        for visitor in visitors:
            visitor.client.close()
        assert gateway.engine.server.in_flight == 0
        kills = gateway.engine.restarts
    faults = [fault for visitor in visitors for fault in visitor.faults]
    seen = sum((visitor.seen for visitor in visitors), Counter[tuple[str, int]]())
    sys.stdout.write(json.dumps({f"{name} {status}": count for (name, status), count in sorted(seen.items())}) + "\n")
    sys.stdout.write(f"{kills} kills; MiB, files, uploads: {stocks[0]} -> {stocks[-1]}\n")
    assert faults == []
    assert kills >= LEAST_KILLS
    assert max(stock[2] for stock in stocks) <= 2 * CLIENTS, "uploads that nobody has any more"
    if SOAK_S >= 300:
        assert stocks[-1][0] < stocks[0][0] * 1.05
        assert stocks[-1][1] <= stocks[0][1] + 20
    record_property("minutes_of_traffic", round(SOAK_S / 60, 1))
    record_property("answers", seen.total())
    record_property("kills", kills)
    record_property("mib_at_first", round(stocks[0][0]))
    record_property("mib_at_last", round(stocks[-1][0]))


def watch(gateway: RunningGateway, chance: random.Random, folder: Path) -> list[tuple[float, int, int]]:
    """Kill vLLM every now and then until the time is over; return what was in use after each time it was back."""
    stocks = []
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < SOAK_S or gateway.engine.restarts < LEAST_KILLS:
        time.sleep(KILL_EVERY_S * chance.uniform(0.5, 1.0))
        restarts = gateway.engine.restarts
        os.kill(gateway.state()["pid"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while gateway.engine.restarts == restarts:
            assert time.monotonic() < deadline, "nobody noticed that vLLM is dead"
            time.sleep(0.01)
        gateway.wait_until_ready()
        gateway.script(token_delay_s=0.001)
        if elapsed > SOAK_S * WARM_UP_SHARE:
            stocks.append(take_stock(folder))
    return stocks
