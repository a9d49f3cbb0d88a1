"""Syncs with the hash embedder, or deletes a whole store: what the tests of deletion start and kill.

    python -m tests.fakes.sync_command DATA_DIR STORE [SOURCE]

Everything but the embedder is the real thing. Without SOURCE the store is deleted.
"""

import sys
from pathlib import Path

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import IngestReport
from retrieval.sync import delete, sync
from tests.fakes.hash_embedder import HashEmbedder


def tell(_: IngestReport) -> None:
    """Tell that a file is done."""
    sys.stdout.write(".")
    sys.stdout.flush()


def main() -> None:
    """Sync or delete."""
    data, store = DataDir(Path(sys.argv[1])), sys.argv[2]
    if len(sys.argv) == 3:
        delete(data, store)
        return
    sync(
        data,
        store,
        Path(sys.argv[3]),
        embedder=HashEmbedder(),
        chunking=ChunkingConfig(60, overlap_tokens=16),
        parsing=ParsingConfig(),
        progress=tell,
    )


if __name__ == "__main__":
    main()
