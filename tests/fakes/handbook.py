"""A gateway over a store that the command line made, with one sentence in it and an assistant that answers from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from serve.answering import AssistantConfig
from tests.fakes.gateway import RunningGateway, searching_gateway
from tests.fakes.hash_embedder import HashEmbedder

HANDBOOK = "handbook"
WARRANTY = "The Brook 40 pump has a warranty of 26 months."
QUESTION = "How long is the warranty of the Brook 40 pump?"


@contextmanager
def handbook_gateway(folder: Path, desk: AssistantConfig) -> Iterator[RunningGateway]:
    """Run it for the time of the block; the assistant is called `desk`."""
    source = folder / "source"
    source.mkdir()
    (source / "warranty.md").write_text(f"# Warranty\n\n{WARRANTY}\n")
    tools: dict[str, Any] = {"embedder": HashEmbedder(), "chunking": ChunkingConfig(), "parsing": ParsingConfig()}
    ingest(DataDir(folder), HANDBOOK, source, **tools)
    with searching_gateway(folder, {"desk": desk}) as running:
        yield running
