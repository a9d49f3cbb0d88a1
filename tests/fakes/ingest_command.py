"""Ingests with the hash embedder and tells each acknowledged count: what the kill tests start and kill.

    python -m tests.fakes.ingest_command DATA_DIR STORE SOURCE

Everything but the embedder is the real thing: parsing in child processes, transactions, snapshot.
"""

import sys
from pathlib import Path

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import IngestReport, ingest
from tests.fakes.hash_embedder import HashEmbedder


def acknowledge(report: IngestReport) -> None:
    """Tell how many files are done; called only after the commit."""
    sys.stdout.write(f"{report.ingested + report.unchanged}\n")
    sys.stdout.flush()


def main() -> None:
    """Ingest."""
    ingest(
        DataDir(Path(sys.argv[1])),
        sys.argv[2],
        Path(sys.argv[3]),
        embedder=HashEmbedder(),
        chunking=ChunkingConfig(60, overlap_tokens=16),
        parsing=ParsingConfig(),
        progress=acknowledge,
    )
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
