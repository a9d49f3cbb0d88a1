"""Starts whole gateways in processes of their own, again and again without their imports, so that tests can kill them.

Each is a gateway with the fake vLLM and the scripted trainer, or with real ingestion and search over the hash embedder,
and dies by a real signal.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import openai

from core.layout import DataDir
from retrieval.searcher import Searcher
from tests.fakes.gateway import running_gateway
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.warm_python import Program, WarmPython

URL_FILE = "gateway.url"


class GatewayProcess:
    """A gateway in a process of its own."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.url = ""

    def wait_until_ready(self) -> bool:
        """Wait until it listens; return False where it ended before."""
        deadline = time.monotonic() + 60
        while not (self.folder / URL_FILE).exists():
            if self.program.poll() is not None:
                return False
            assert time.monotonic() < deadline, (self.folder / "gateway.log").read_text()
            time.sleep(0.02)
        self.url = (self.folder / URL_FILE).read_text()
        return True

    def client(self) -> openai.OpenAI:
        """Return the stock client without retries, for a with block."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def is_listening(self) -> bool:
        """Tell whether it answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        self.program.kill()
        self.wait()

    def wait(self) -> int:
        """Return the exit code once it has ended, negative for a signal."""
        return self.program.wait()

    def stop(self) -> None:
        """End it in good order."""
        os.kill(self.program.pid, signal.SIGTERM)
        self.wait()


class WarmGateway(WarmPython):
    """The server of gateways."""

    def __init__(self) -> None:
        super().__init__(__name__)

    def start_gateway(self, folder: Path, *, ingests: bool = False, **environment: str) -> GatewayProcess:
        """Start a gateway on a data directory.

        Args:
            folder: The data directory.
            ingests: Whether it ingests and searches; else it works on fine-tuning jobs.
            environment: Variables beside the server's own.
        """
        (folder / URL_FILE).unlink(missing_ok=True)
        work = "ingest" if ingests else "train"
        return GatewayProcess(self.start(__name__, str(folder), work, **environment), folder)


def main() -> None:
    """Run a gateway until SIGTERM; its output goes to a file."""
    folder, ingests = Path(sys.argv[1]), sys.argv[2] == "ingest"
    log = os.open(folder / "gateway.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with contextlib.ExitStack() as stack:
        searcher = Searcher(DataDir(folder), make_embedder=HashEmbedder) if ingests else None
        if searcher is not None:
            stack.callback(searcher.close)
        running = stack.enter_context(running_gateway(folder, trains=not ingests, stores=searcher))
        partial = folder / f"{URL_FILE}.tmp"
        partial.write_text(running.url)
        partial.rename(folder / URL_FILE)
        while not told:
            time.sleep(0.05)
