"""Two real vLLM servers behind one gateway (`engine.urls`): both answer, one may die, and it is taken in again.

The fleet's rules are held by test_serve_fleet.py on fakes; this shows them on what an operator starts, by the command
of docs/architecture.md, and measures it. LOAM_TEST_FULL=1 only: two servers take 8 GB of memory and some minutes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from core.layout import DataDir
from core.offline import offline_environment
from tests.e2e.program import MODEL, REPO, START_TIMEOUT_S, Program, running_program
from tests.fakes.adapter import write_adapter

pytestmark = pytest.mark.skipif(
    not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: two real vLLM servers, some minutes"
)
KEY = "their-key"
ASKED, WORKERS, TOKENS = 16, 8, 32
FIRST_WAVE = WORKERS // 2
"""What each of two servers is given at least: its even share of the requests that come at once. Whoever answers sooner
is given more of the rest (docs/decisions/0070)."""


@dataclass(slots=True)
class Replica:
    """A vLLM server on one core.

    Attributes:
        socket: Where it listens.
        model: The base model's folder.
        core: The CPU core that it has.
        log: What it says.
        process: It, while it runs.
    """

    socket: Path
    model: Path
    core: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    def start(self) -> None:
        """Start it as docs/architecture.md says, with what a small CPU needs."""
        self.socket.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(self.model),
            "--served-model-name", MODEL, "--enable-lora", "--max-lora-rank", "16", "--generation-config", "vllm",
            "--max-logprobs", "20", "--uds", str(self.socket),
            "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager",
        ]  # fmt: skip
        environment = {
            **os.environ, **offline_environment(), "VLLM_API_KEY": KEY, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(self.core),
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=REPO, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill it with all its processes, as a machine that is gone would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def get(self, path: str) -> str:
        """Ask it by itself."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://vllm") as client:
            return client.get(path, headers={"authorization": f"Bearer {KEY}"}).raise_for_status().text

    def count_answers(self) -> int:
        """Return how many requests it has answered."""
        found = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return sum(int(float(number)) for number in found)


@pytest.fixture(scope="module")
def data(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """A data directory with the small models and one adapter."""
    data = DataDir(tmp_path_factory.mktemp("replicas"))
    data.models.symlink_to(demo_models / "models")
    write_adapter(data, "mine", MODEL)
    return data


@contextmanager
def running_replicas(data: DataDir) -> Iterator[list[Replica]]:
    """Run two servers, each on a core of its own, for the time of the block."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("wanted two CPU cores, found one")
    folder = Path(tempfile.mkdtemp(prefix="loam-"))  # a socket's path has at most 107 bytes
    replicas = [
        Replica(folder / f"{core}.sock", data.model(MODEL), core, data.root / f"vllm-{core}.log") for core in cores[:2]
    ]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        yield replicas


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that takes as long as a server's start."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def count_ready(program: Program) -> int:
    """Return how many servers the gateway sends requests to."""
    text = httpx.get(f"{program.url}/metrics").raise_for_status().text
    return sum(int(float(number)) for number in re.findall(r"^loam_engine_ready\{.*\} (\S+)$", text, re.M))


def count_answers(replicas: list[Replica]) -> list[int]:
    """Return how many requests each server has answered since it started."""
    return [replica.count_answers() for replica in replicas]


def ask_many(client: openai.OpenAI, model: str) -> tuple[float, int]:
    """Ask many questions at once; returns tokens a second and the number of answers.

    Raises:
        openai.APIError: One was not answered.
    """

    def ask(number: int) -> int:
        completion = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell a story about pump {number}."}],
            max_tokens=TOKENS,
            temperature=0,
        )
        assert completion.usage is not None
        return completion.usage.completion_tokens

    start = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        counts = list(pool.map(ask, range(ASKED)))
    return sum(counts) / (time.monotonic() - start), len(counts)


def ask_while_one_dies(program: Program, replica: Replica) -> int:
    """Ask many questions and kill a server meanwhile: the stock client asks again where its request died with it."""
    stock = openai.OpenAI(base_url=f"{program.url}/v1", api_key="none", timeout=300)
    with stock, ThreadPoolExecutor(1) as side:
        asking = side.submit(ask_many, stock, "mine")
        time.sleep(2)
        assert not asking.done()
        replica.kill()
        return asking.result()[1]


def test_two_servers_answer_and_one_may_die(
    data: DataDir, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setenv("LOAM_ENGINE_KEY", KEY)
    with running_replicas(data) as replicas:
        urls = ",".join(f"unix:{replica.socket}" for replica in replicas)
        options = ("model=smollm2_135m", "adapters=[mine]", f"engine.urls=[{urls}]")
        with running_program(data.root, *options) as program:
            wait_until(lambda: count_ready(program) == 2, "two servers that are ready")
            adapters = [replica.get("/v1/models") for replica in replicas]
            assert ["ft:" in text for text in adapters] == [True, True]
            ask_many(program.client(), MODEL)
            before = count_answers(replicas)
            rate_of_two, _ = ask_many(program.client(), MODEL)
            shares = [now - then for now, then in zip(count_answers(replicas), before, strict=True)]
            assert sum(shares) >= ASKED
            assert min(shares) >= FIRST_WAVE, shares

            assert ask_while_one_dies(program, replicas[0]) == ASKED
            wait_until(lambda: count_ready(program) == 1, "one server that is ready")
            rate_of_one, _ = ask_many(program.client(), MODEL)

            replicas[0].start()
            wait_until(lambda: count_ready(program) == 2, "the first server taken in again")
            assert "ft:" in replicas[0].get("/v1/models")
            before_it, _ = count_answers(replicas)
            ask_many(program.client(), "mine")
            assert replicas[0].count_answers() - before_it >= FIRST_WAVE
    record_property("tokens_per_s_of_two", round(rate_of_two, 1))
    record_property("tokens_per_s_of_one", round(rate_of_one, 1))
    record_property("answers_by_server", shares)
