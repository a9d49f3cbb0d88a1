"""One engine for search by words, measured on one corpus, for scripts/bench_lexical.py.

    PYTHON scripts/bench_lexical_engines.py ENGINE corpus.jsonl queries.json SIZE

Runs in whichever Python has the engine: bm25s and tantivy live in `.venv-peers` (`make bench-peers`), where nothing of
Loam can be imported. Each engine splits and stems words by itself, without English stop words. Prints one JSON object.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

DEPTH = 100
"""Documents that a query asks for."""
BATCH = 20
"""Documents that are added or deleted at once; after each batch a query sees it."""
BATCHES = 10
QUERY_S = 20.0
"""Longest time for all queries, seconds."""
STOP_WORDS = frozenset(
    word
    for line in (
        "a an and are as at be been but by can could did do does for from had has have how i if in into is it its me",
        "my no not of on or our shall should so such than that the their them then there these they this those to was",
        "we were what when where which who whom whose why will with would you your",
    )
    for word in line.split()
)


class Engine(Protocol):
    """What every engine can do; a document's number is its place in the corpus, later ones follow."""

    def build(self, texts: Iterable[str]) -> None:
        """Index a corpus."""

    def add(self, texts: list[str]) -> None:
        """Index more documents, so that the next query finds them."""

    def delete(self, numbers: list[int]) -> None:
        """Remove documents, so that the next query does not find them."""

    def search(self, query: str) -> list[int]:
        """Return the best documents' numbers."""


class LoamEngine:
    """Our runs of inverted lists, joined as an index joins them."""

    def __init__(self, _: Path) -> None:
        """Begin without documents."""
        from retrieval.runs import ChunkRun

        self._runs: list[ChunkRun] = []
        self._size = 0
        self._live: Any = None
        self._index: Any = None

    def build(self, texts: Iterable[str]) -> None:
        """Index in batches, and join them."""
        from retrieval.changes import BATCH as AT_ONCE
        from retrieval.config import IndexDevice
        from retrieval.runs import join_all

        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == AT_ONCE:
                self._runs.append(self._make_run(batch))
                batch = []
        if batch:
            self._runs.append(self._make_run(batch))
        self._runs = join_all(self._runs, IndexDevice.cpu)
        self._remake()

    def _make_run(self, texts: list[str]) -> Any:
        import numpy as np

        from retrieval.config import IndexDevice
        from retrieval.runs import build_chunk_run
        from retrieval.store import ChunkRow
        from retrieval.vectors import ChunkVectors, no_spans

        nothing = ChunkVectors(np.zeros((1, 1), dtype=np.float32), no_spans(1))  # a vector that no one asks for
        rows = [ChunkRow(self._size + place, None, text, nothing) for place, text in enumerate(texts)]
        self._size += len(texts)
        return build_chunk_run(rows, IndexDevice.cpu)

    def _remake(self) -> None:
        import numpy as np

        from retrieval.lexical import make_lexical

        self._slots = np.concatenate([run.numbers for run in self._runs])
        live = None if self._live is None or self._live.all() else self._live
        self._index = make_lexical([run.postings for run in self._runs], live)

    def add(self, texts: list[str]) -> None:
        """Append a run, and join small ones."""
        import numpy as np

        from retrieval.config import IndexDevice
        from retrieval.runs import join_runs
        from retrieval.snapshot import JOINED_AT_ONCE

        live = np.ones(len(self._slots), dtype=np.bool_) if self._live is None else self._live
        live = np.append(live, np.ones(len(texts), dtype=np.bool_))
        runs = [*self._runs, self._make_run(texts)]
        self._runs, self._live = join_runs(runs, live, IndexDevice.cpu, largest=JOINED_AT_ONCE)
        self._remake()

    def delete(self, numbers: list[int]) -> None:
        """Mark documents."""
        import numpy as np

        live = np.ones(len(self._slots), dtype=np.bool_) if self._live is None else self._live.copy()
        live[np.searchsorted(self._slots, numbers)] = False
        self._live = live
        self._remake()

    def search(self, query: str) -> list[int]:
        """Score all, pick the best."""
        from retrieval.lexical import pick_best, score_lexical

        scores = score_lexical(self._index, query)
        if self._index.live is not None:
            scores[~self._index.live] = 0
        found: list[int] = self._slots[pick_best(scores, DEPTH)].tolist()
        return found


class Bm25sEngine:
    """bm25s with PyStemmer; it cannot add or delete, so it is made anew."""

    def __init__(self, _: Path) -> None:
        """Begin without documents."""
        import Stemmer

        self._texts: list[str] = []
        self._numbers: list[int] = []
        self._size = 0
        self._stemmer = Stemmer.Stemmer("english")
        self._index: Any = None

    def build(self, texts: Iterable[str]) -> None:
        """Index all."""
        self._texts = list(texts)
        self._size = len(self._texts)
        self._numbers = list(range(self._size))
        self._remake()

    def _remake(self) -> None:
        import bm25s

        tokens = bm25s.tokenize(self._texts, stopwords="en", stemmer=self._stemmer, show_progress=False)
        self._index = bm25s.BM25(k1=0.9, b=0.6)
        self._index.index(tokens, show_progress=False)

    def add(self, texts: list[str]) -> None:
        """Make it anew with more."""
        self._texts += texts
        self._numbers += range(self._size, self._size + len(texts))
        self._size += len(texts)
        self._remake()

    def delete(self, numbers: list[int]) -> None:
        """Make it anew with less."""
        gone = set(numbers)
        kept = [place for place, number in enumerate(self._numbers) if number not in gone]
        self._texts = [self._texts[place] for place in kept]
        self._numbers = [self._numbers[place] for place in kept]
        self._remake()

    def search(self, query: str) -> list[int]:
        """Ask it."""
        import bm25s

        tokens = bm25s.tokenize([query], stopwords="en", stemmer=self._stemmer, show_progress=False)
        places, scores = self._index.retrieve(tokens, k=min(DEPTH, len(self._texts)), show_progress=False, n_threads=0)
        return [self._numbers[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0]


class TantivyEngine:
    """tantivy, in memory, with its own stemmer and stop words."""

    def __init__(self, _: Path) -> None:
        """Begin without documents."""
        import tantivy

        builder = tantivy.SchemaBuilder()
        builder.add_text_field("body", stored=False, tokenizer_name="words")
        builder.add_integer_field("number", stored=True, indexed=True)
        self._index = tantivy.Index(builder.build())
        analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for one in (tantivy.Filter.lowercase(), tantivy.Filter.stopword("english"), tantivy.Filter.stemmer("english")):
            analyzer = analyzer.filter(one)
        self._index.register_tokenizer("words", analyzer.build())
        self._writer = self._index.writer(256_000_000, 1)
        self._size = 0

    def build(self, texts: Iterable[str]) -> None:
        """Index all."""
        self._put(texts)

    def add(self, texts: list[str]) -> None:
        """Index, commit and reload."""
        self._put(texts)

    def _put(self, texts: Iterable[str]) -> None:
        import tantivy

        for text in texts:
            self._writer.add_document(tantivy.Document(body=text, number=self._size))
            self._size += 1
        self._commit()

    def _commit(self) -> None:
        self._writer.commit()
        self._index.reload()
        self._searcher = self._index.searcher()

    def delete(self, numbers: list[int]) -> None:
        """Delete by number, commit and reload."""
        for number in numbers:
            self._writer.delete_documents_by_term("number", number)
        self._commit()

    def search(self, query: str) -> list[int]:
        """Ask for any of the words."""
        words = " ".join(re.findall(r"\w+", query.lower()))  # nothing of the query language
        parsed = self._index.parse_query(words, ["body"])
        hits = self._searcher.search(parsed, DEPTH).hits
        return [self._searcher.doc(address)["number"][0] for _, address in hits]


class Fts5Engine:
    """SQLite's FTS5 in a file, with its Porter stemmer."""

    def __init__(self, folder: Path) -> None:
        """Begin without documents, in a new file of a folder."""
        import sqlite3

        self._base = sqlite3.connect(folder / f"{len(list(folder.iterdir()))}.db")
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("CREATE VIRTUAL TABLE words USING fts5(body, tokenize = 'porter unicode61')")
        self._size = 0

    def build(self, texts: Iterable[str]) -> None:
        """Index all."""
        self._put(texts)

    def add(self, texts: list[str]) -> None:
        """Insert and commit."""
        self._put(texts)

    def _put(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._base.execute("INSERT INTO words (rowid, body) VALUES (?, ?)", (self._size, text))
            self._size += 1
        self._base.commit()

    def delete(self, numbers: list[int]) -> None:
        """Delete and commit."""
        self._base.executemany("DELETE FROM words WHERE rowid = ?", [(number,) for number in numbers])
        self._base.commit()

    def search(self, query: str) -> list[int]:
        """Ask for any of the words."""
        words = re.findall(r"\w+", query.lower())
        wanted = " OR ".join(f'"{word}"' for word in words if word not in STOP_WORDS)
        if not wanted:
            return []
        rows = self._base.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (wanted, DEPTH))
        return [number for (number,) in rows]


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "loam": LoamEngine,
    "bm25s": Bm25sEngine,
    "tantivy": TantivyEngine,
    "fts5": Fts5Engine,
}
"""What makes each engine; it may write into the folder that it is given."""


def main() -> None:
    """Measure one engine."""
    with tempfile.TemporaryDirectory(prefix="bench-lexical-") as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    """Measure the engine, corpus and questions that the command line names, and print what was found."""
    name, corpus, questions, size = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    queries: list[str] = json.loads(questions.read_text(encoding="utf-8"))
    engine = ENGINES[name](folder)
    engine.build(["warm up"] * 2)
    engine.search("warm")
    engine = ENGINES[name](folder)
    before, start = read_memory(), time.perf_counter()
    engine.build(read_texts(corpus, 0, size))
    build_s = time.perf_counter() - start
    found, times = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(engine.search(query)[:DEPTH])
        times.append(time.perf_counter() - start)
        if sum(times) > QUERY_S:
            break
    memory_bytes = read_memory() - before
    answer = {"build_s": build_s, "memory_bytes": memory_bytes, "queries_per_s": len(times) / sum(times)}
    answer |= {"p50_ms": sorted(times)[len(times) // 2] * 1e3}
    late = list(read_texts(corpus, size, size + BATCH * BATCHES))
    if late:
        answer |= measure_changes(engine, late, size, queries[0])
    print(json.dumps({**answer, "found": found}))


def measure_changes(engine: Engine, late: list[str], size: int, query: str) -> dict[str, float]:
    """Return how many documents a second can be added and deleted, a query after each batch included."""

    def count_per_s(change: Callable[[int], None]) -> float:
        start = time.perf_counter()
        done = 0
        for number in range(BATCHES):
            change(number * BATCH)
            engine.search(query)
            done += BATCH
            if time.perf_counter() - start > QUERY_S:
                break
        return done / (time.perf_counter() - start)

    adds = count_per_s(lambda begin: engine.add(late[begin : begin + BATCH]))
    deletes = count_per_s(lambda begin: engine.delete(list(range(begin, size, size // BATCH))[:BATCH]))
    return {"adds_per_s": adds, "deletes_per_s": deletes}


def read_texts(corpus: Path, first: int, last: int) -> Iterable[str]:
    """Yield a stretch of the corpus."""
    with corpus.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number >= last:
                return
            if number >= first:
                yield json.loads(line)


def read_memory() -> int:
    """Return the resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
