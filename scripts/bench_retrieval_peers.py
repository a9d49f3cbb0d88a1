"""LangChain's usual hybrid retrieval, as its tutorials have it, for scripts/bench_retrieval.py and bench_index.py.

    .venv-peers/bin/python scripts/bench_retrieval_peers.py corpus.jsonl MODEL_FOLDER [vectors.npy]

Runs in an environment of its own (`make bench-peers`) and imports nothing of Loam. Ingests, says how long that took,
then answers queries from standard input, a JSON object a line. With a file of the documents' vectors only queries are
embedded.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    {"HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False", "TOKENIZERS_PARALLELISM": "true", "CHROMA_TELEMETRY": "0"}
)

K = 10
WEIGHTS = [0.4, 0.6]
"""Of words and of vectors."""
BATCH = 5000
"""Documents that Chroma takes at once, at most."""


def main() -> None:
    """Ingest and answer."""
    from langchain_chroma import Chroma
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings

    corpus, model = Path(sys.argv[1]), sys.argv[2]
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    documents = [
        Document(page_content=f"{row['title']}\n{row['text']}".strip() or ".", metadata={"id": row["id"]})
        for row in rows
    ]
    embeddings: Any = HuggingFaceEmbeddings(model_name=model)
    embeddings.embed_query("ready")
    if len(sys.argv) > 3:
        embeddings = give_vectors(embeddings, Path(sys.argv[3]))
    start = time.perf_counter()
    vectors = Chroma.from_documents(documents[:BATCH], embeddings, collection_metadata={"hnsw:space": "cosine"})
    for begin in range(BATCH, len(documents), BATCH):
        vectors.add_documents(documents[begin : begin + BATCH])
    words = BM25Retriever.from_documents(documents, k=K)
    seconds = time.perf_counter() - start
    dense = vectors.as_retriever(search_kwargs={"k": K})
    arms: dict[str, Any] = {
        "langchain_bm25": words,
        "langchain_chroma": dense,
        "langchain_ensemble": EnsembleRetriever(retrievers=[words, dense], weights=WEIGHTS),
    }
    say(arms=list(arms), ingest_s=seconds)
    for line in sys.stdin:
        wanted = json.loads(line)
        start = time.perf_counter()
        found = arms[wanted["arm"]].invoke(wanted["query"])
        elapsed_ms = (time.perf_counter() - start) * 1e3
        say(ids=[document.metadata["id"] for document in found], ms=elapsed_ms)


def give_vectors(model: Any, path: Path) -> Any:
    """Return embeddings of which those of documents come from a file, in the order in which they are asked for."""
    import numpy as np
    from langchain_core.embeddings import Embeddings

    vectors = iter(np.load(path, mmap_mode="r", allow_pickle=False))

    class GivenEmbeddings(Embeddings):
        """A model for queries, a file for documents."""

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            """Return the next vectors."""
            return [next(vectors).tolist() for _ in texts]

        def embed_query(self, text: str) -> list[float]:
            """Ask the model."""
            found: list[float] = model.embed_query(text)
            return found

    return GivenEmbeddings()


def say(**answer: Any) -> None:
    """Answer the bench."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
