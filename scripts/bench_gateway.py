"""Measure what the gateway adds to an answer: `python scripts/bench_gateway.py [rounds=5] [output=json]`.

The upstream is scripts/mock_upstream.py, prepared bytes over raw sockets. Arms take turns on it, forwards and
backwards: asked directly, through `serve/run.py engine.urls=[…]`, and through LiteLLM's proxy where
`make bench-gateway-peers` has made its environment. That all arms answer the same is proven first. Requests are sent
and read by a client of raw sockets, too. Does not know how an answer is relayed.
"""

from core.entry import begin_program

begin_program()

import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
import uvloop
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, check_ranges, load_config, run_app
from core.errors import ContractError, EngineUnavailable
from core.layout import DataDir
from core.logs import configure_logging
from retrieval.config import Output
from scripts.server_process import find_free_port

REPO = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
DIRECT, GATEWAY, LITELLM = "direct", "gateway", "litellm"
UNARY, STREAM, PACED = "unary", "stream", "paced"
ALIAS = "mock"
"""What LiteLLM calls the model."""


@dataclass(slots=True)
class ModelChoice:
    """What stands under `model`."""

    name: str = "smollm2-135m"


@dataclass(slots=True)
class BenchConfig:
    """What scripts/bench_gateway.py can be told.

    Attributes:
        peers_python: The Python that has LiteLLM (`make bench-gateway-peers`); left out where it is not there.
        chunks: Events with text in a stream.
        concurrency: Of the turns that count requests a second.
        rounds: Of turns; the first warms up and is not counted.
        turn_s: Seconds of one turn.
        output: How the figures are printed.
        model: Whose name and tokenizer the gateway is started with.
        paths: Where the models are.
    """

    peers_python: str = ".venv-litellm/bin/python"
    chunks: int = 200
    concurrency: int = 64
    rounds: int = 5
    turn_s: float = 2.0
    output: Output = Output.table
    model: ModelChoice = field(default_factory=ModelChoice)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "bench_gateway",
            {
                "chunks": (self.chunks, 1, 10_000),
                "concurrency": (self.concurrency, 1, 512),
                "rounds": (self.rounds, 2, 100),
                "turn_s": (self.turn_s, 0.1, 600),
            },
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to the upstream.

    Attributes:
        name: How the table calls it.
        port: Where it listens on loopback.
        model: What it calls the model.
        process: Whose processor time is counted; None for the upstream itself.
    """

    name: str
    port: int
    model: str
    process: psutil.Process | None = None

    def frame(self, kind: str) -> bytes:
        """Return a whole request."""
        text = "paced, please" if kind == PACED else "Say something."
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 256}
        content = json.dumps(body | ({"stream": True} if kind != UNARY else {})).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nauthorization: Bearer none\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def read_cpu_s(self) -> float:
        """Return the processor time that it has taken, its threads and children included."""
        if self.process is None:
            return 0.0
        every = [self.process, *self.process.children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in every))


@dataclass(slots=True)
class Turns:
    """What was measured of one arm, one kind of request and one concurrency.

    Attributes:
        latencies_s: Of each request, from its first byte sent to its last byte read.
        seconds: Spent on it in all.
        cpu_s: Processor time of the arm's own process meanwhile.
    """

    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table.

    Attributes:
        kind: Of request: whole, a stream as fast as it comes, or a stream with 1 ms between its events.
        concurrency: Requests at a time.
        arm: Which way.
        requests: That were counted.
        p50_ms: Median latency.
        p99_ms: 99th percentile.
        requests_per_s: Finished a second.
        added_p50_ms: Median less the direct arm's.
        added_p99_ms: 99th percentile less the direct arm's.
        added_us_a_chunk: Of a stream: mean latency less the direct arm's, over its events.
        cpu_us_a_request: Processor time of the arm's process for a request.
        cpu_us_a_chunk: Of a stream: that over its events.
    """

    kind: str
    concurrency: int
    arm: str
    requests: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float
    added_p50_ms: float
    added_p99_ms: float
    added_us_a_chunk: float | None
    cpu_us_a_request: float
    cpu_us_a_chunk: float | None


class Connection(asyncio.Protocol):
    """A client's connection that sends prepared requests one after the other and reads each answer to its end."""

    def __init__(self, request: bytes) -> None:
        """Prepare a request."""
        self._request = request
        self._received = bytearray()
        self._length = -1
        self._waiting: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that is under way."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ContractError(f"the connection was closed within an answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Finish the request once its answer is whole."""
        received = self._received
        received += data
        if self._length < 0 and (end := received.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"content-length: *(\d+)", received[:end], re.IGNORECASE)
            self._length = end + 4 + int(length.group(1)) if length else 0
        is_whole = len(received) >= self._length if self._length > 0 else received.endswith(b"\r\n0\r\n\r\n")
        if self._length >= 0 and is_whole and self._waiting is not None:
            answer = bytes(received)
            received.clear()
            self._length = -1
            if not self._waiting.done():
                self._waiting.set_result(answer)

    async def ask(self) -> bytes:
        """Send the request and return the whole answer, its head included."""
        if self._transport is None:
            raise ContractError("the connection is not open")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        return await self._waiting

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def main(composed: DictConfig) -> None:
    """Run the bench and print what it found."""
    configure_logging(level="WARNING")
    config = load_config(composed, BenchConfig)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as name, ExitStack() as stack:
        arms = start_arms(config, Path(name), stack)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(prove_equal(arms))
            measured = runner.run(measure(arms, config))
    figures = [
        line for (kind, concurrency), turns in measured.items() for line in judge(kind, concurrency, turns, config)
    ]
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, load {load_before:.2f} before, {os.getloadavg()[0]:.2f} after"
    )
    if config.output is Output.json:
        sys.stdout.write(json.dumps({"machine": machine, "figures": [asdict(line) for line in figures]}) + "\n")
    else:
        print_table(figures, machine)
    if len(arms) < 3:
        sys.stderr.write(f"litellm left out: there is no {config.peers_python}. Make it: make bench-gateway-peers\n")


def start_arms(config: BenchConfig, folder: Path, stack: ExitStack) -> list[Arm]:
    """Start the upstream, the gateway and, where it is installed, LiteLLM; each ends with the stack."""
    socket = folder / "upstream.sock"
    upstream = [sys.executable, str(REPO / "scripts" / "mock_upstream.py"), "--model", config.model.name]
    upstream += ["--uds", str(socket), "--chunks", str(config.chunks)]
    process = stack.enter_context(running(upstream, folder / "upstream.log", stdout=subprocess.PIPE))
    if process.stdout is None:
        raise EngineUnavailable("the upstream has no output")
    port = int(process.stdout.readline())
    process.stdout.close()
    arms = [Arm(DIRECT, port, config.model.name)]
    data = DataDir(folder / "data")
    data.root.mkdir()
    data.models.symlink_to(DataDir(Path(config.paths.data_dir)).models.resolve())
    own_port = find_free_port()
    gateway = [sys.executable, str(REPO / "serve" / "run.py"), f"+model.name={config.model.name}", "adapters=[]"]
    gateway += [f"engine.urls=['unix:{socket}']", f"gateway.port={own_port}", f"paths.data_dir={data.root}"]
    process = stack.enter_context(running(gateway, folder / "gateway.log"))
    wait_for(f"http://127.0.0.1:{own_port}/health", process, folder / "gateway.log")
    arms.append(Arm(GATEWAY, own_port, config.model.name, psutil.Process(process.pid)))
    python = Path(config.peers_python).absolute()
    if python.is_file():
        arms.append(start_litellm(python, port, config, folder, stack))
    return arms


def start_litellm(python: Path, port: int, config: BenchConfig, folder: Path, stack: ExitStack) -> Arm:
    """Start LiteLLM's proxy before the upstream, with one worker and nothing but the model configured."""
    settings = folder / "litellm.yaml"
    settings.write_text(
        f"model_list:\n  - model_name: {ALIAS}\n    litellm_params:\n      model: openai/{config.model.name}\n"
        f"      api_base: http://127.0.0.1:{port}/v1\n      api_key: none\nlitellm_settings:\n  telemetry: false\n"
    )
    own_port = find_free_port()
    command = [
        str(python.parent / "litellm"),
        "--config",
        str(settings),
        "--host",
        "127.0.0.1",
        "--port",
        str(own_port),
    ]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    offline["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # no key to check, as with the gateway
    process = stack.enter_context(running(command, folder / "litellm.log", env={**os.environ, **offline}))
    wait_for(f"http://127.0.0.1:{own_port}/health/liveliness", process, folder / "litellm.log")
    return Arm(LITELLM, own_port, ALIAS, psutil.Process(process.pid))


@contextmanager
def running(
    command: list[str], log: Path, *, stdout: int | None = None, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program for the time of the block; what it says goes to a file."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=REPO, stdout=stdout or out, stderr=out, env=env)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a program answers.

    Raises:
        EngineUnavailable: It ended, or took too long; with the end of what it said.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise EngineUnavailable(f"{url}: wanted an answer, found none. Its last lines:\n{log.read_text()[-2000:]}")


async def prove_equal(arms: list[Arm]) -> None:
    """Check that every arm answers the same: the gateway to the byte, LiteLLM, which writes it anew, to the text.

    Raises:
        ContractError: One does not.
    """
    for kind in (UNARY, STREAM):
        bodies = {}
        for arm in arms:
            connection = await connect(arm, kind)
            bodies[arm.name] = read_body(await connection.ask())
            connection.close()
        if bodies[GATEWAY] != bodies[DIRECT]:
            raise ContractError(f"{kind}: wanted the gateway's bytes to be the upstream's, found others")
        texts = {name: read_text(kind, body) for name, body in bodies.items()}
        if len(set(texts.values())) != 1 or not texts[DIRECT]:
            raise ContractError(f"{kind}: wanted one text from every arm, found {len(set(texts.values()))}")


def read_body(answer: bytes) -> bytes:
    """Return an answer's body, put together from its chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


def read_text(kind: str, body: bytes) -> str:
    """Return what the model said."""
    if kind == UNARY:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    chunks = [json.loads(event) for event in events]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def connect(arm: Arm, kind: str) -> Connection:
    """Open a connection for one kind of request."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(arm.frame(kind)), "127.0.0.1", arm.port)
    return connection


async def measure(arms: list[Arm], config: BenchConfig) -> dict[tuple[str, int], dict[str, Turns]]:
    """Let the arms take turns, round after round, and return what was measured, by kind, concurrency and arm."""
    cells = [(UNARY, 1), (UNARY, config.concurrency), (STREAM, 1), (STREAM, config.concurrency), (PACED, 1)]
    measured = {cell: {arm.name: Turns() for arm in arms} for cell in cells}
    for number in range(config.rounds):
        for kind, concurrency in cells:
            for arm in arms if number % 2 else reversed(arms):
                turns = Turns() if number == 0 else measured[kind, concurrency][arm.name]
                await take_turn(arm, kind, concurrency, config.turn_s, turns)
    return measured


async def take_turn(arm: Arm, kind: str, concurrency: int, turn_s: float, turns: Turns) -> None:
    """Ask for some seconds, and add what was measured."""
    connections = [await connect(arm, kind) for _ in range(concurrency)]
    check_status(await connections[0].ask())  # one alone: a slow server closes those that wait for the others
    cpu_s, start = arm.read_cpu_s(), time.perf_counter()

    async def ask_on(connection: Connection) -> None:
        while (asked := time.perf_counter()) - start < turn_s:
            answer = await connection.ask()
            turns.latencies_s.append(time.perf_counter() - asked)
            check_status(answer)

    await asyncio.gather(*(ask_on(connection) for connection in connections))
    turns.seconds += time.perf_counter() - start
    turns.cpu_s += arm.read_cpu_s() - cpu_s
    for connection in connections:
        connection.close()


def check_status(answer: bytes) -> None:
    """Count no answer but a good one.

    Raises:
        ContractError: It is another.
    """
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ContractError(f"wanted 200, found {answer[:300]!r}")


def judge(kind: str, concurrency: int, turns: dict[str, Turns], config: BenchConfig) -> list[Figures]:
    """Return the table's lines for one kind of request and one concurrency."""
    direct = turns[DIRECT].latencies_s
    events = None if kind == UNARY else config.chunks + 2
    lines = []
    for name, one in turns.items():
        requests = len(one.latencies_s)
        added_s = statistics.fmean(one.latencies_s) - statistics.fmean(direct)
        cpu_us = one.cpu_s / requests * 1e6
        lines.append(
            Figures(
                kind=kind,
                concurrency=concurrency,
                arm=name,
                requests=requests,
                p50_ms=round(find_percentile(one.latencies_s, 50) * 1e3, 3),
                p99_ms=round(find_percentile(one.latencies_s, 99) * 1e3, 3),
                requests_per_s=round(requests / one.seconds, 1),
                added_p50_ms=round((find_percentile(one.latencies_s, 50) - find_percentile(direct, 50)) * 1e3, 3),
                added_p99_ms=round((find_percentile(one.latencies_s, 99) - find_percentile(direct, 99)) * 1e3, 3),
                added_us_a_chunk=round(added_s / events * 1e6, 1) if events else None,
                cpu_us_a_request=round(cpu_us, 1),
                cpu_us_a_chunk=round(cpu_us / events, 1) if events else None,
            )
        )
    return lines


def find_percentile(values: list[float], percent: int) -> float:
    """Return a percentile, 1 to 99."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def print_table(figures: list[Figures], machine: str) -> None:
    """Print the figures for people."""
    table = Table(title=f"What the gateway adds ({machine})")
    columns = ("request", "at a time", "arm", "n", "p50 ms", "p99 ms", "per s", "+p50 ms", "+p99 ms", "+µs/event")
    for name in (*columns, "CPU µs", "CPU µs/event"):
        table.add_column(name, justify="left" if name in ("request", "arm") else "right")
    for line in figures:
        chunk = ["" if value is None else f"{value:.1f}" for value in (line.added_us_a_chunk, line.cpu_us_a_chunk)]
        times = (line.p50_ms, line.p99_ms, line.requests_per_s, line.added_p50_ms, line.added_p99_ms)
        first = (line.kind, str(line.concurrency), line.arm, str(line.requests))
        table.add_row(*first, *(f"{value:.2f}" for value in times), chunk[0], f"{line.cpu_us_a_request:.0f}", chunk[1])
    Console().print(table)


if __name__ == "__main__":
    run_app("bench_gateway", main)
