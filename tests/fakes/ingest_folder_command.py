"""Ingests a folder with the hash embedder and tells what became of each file, how long it took and what it cost.

    python -m tests.fakes.ingest_folder_command DATA_DIR STORE SOURCE

Prints one JSON object. A process of its own, so that a crash is seen and the memory of its children is theirs alone.
"""

import json
import resource
import sys
import time
from pathlib import Path

from core.layout import DataDir
from core.logs import configure_logging
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.ingest import IngestReport, ingest
from retrieval.store import find_store
from tests.fakes.hash_embedder import HashEmbedder


class Watch:
    """Measures the time between two reports of progress: at least what the slowest file took."""

    def __init__(self) -> None:
        """Start."""
        self._last = time.monotonic()
        self.longest_s = 0.0

    def __call__(self, _: IngestReport) -> None:
        """Take the time."""
        now = time.monotonic()
        self.longest_s, self._last = max(self.longest_s, now - self._last), now


def main() -> None:
    """Ingest and print."""
    configure_logging(level="WARNING")
    data, store, source = DataDir(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    watch = Watch()
    chunking, parsing = ChunkingConfig(60, overlap_tokens=16), ParsingConfig(workers=1)
    report = ingest(data, store, source, embedder=HashEmbedder(), chunking=chunking, parsing=parsing, progress=watch)
    engine = open_database(data.database)
    states = list_documents(engine, find_store(engine, store))
    told = {
        "found": report.found,
        "files": {state.file: [state.status, state.last_error] for state in states},
        "longest_s": watch.longest_s,
        "child_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
