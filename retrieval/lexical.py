"""Lexical search: BM25 over stemmed words without stop words, by bm25s.

Chosen over SQLite's FTS5 by measurement (docs/decisions/0013). Does not know the database, vectors or fusion.
"""

import logging
import re
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import Stemmer
from numpy.typing import NDArray

LANGUAGE = "english"
K1 = 0.9
B = 0.6
WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    word
    for line in (
        "a an and are as at be been but by can could did do does for from had has have how i if in into is it its me",
        "my no not of on or our shall should so such than that the their them then there these they this those to was",
        "we were what when where which who whom whose why will with would you your",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class LexicalIndex:
    """BM25 scores of every word and chunk, computed in advance.

    Attributes:
        bm25: bm25s.BM25; None where no chunk holds a word.
        size: How many chunks there are.
    """

    bm25: Any
    size: int


_of_thread = threading.local()  # a stemmer may not be used by two threads at once


def _import_bm25s() -> Any:
    """Import bm25s when it is needed (it brings numba), and quieten the logger that it sets to DEBUG."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are compared: folded, without stop words, stemmed.

    A text of nothing but stop words keeps them, so that it can still be found.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = WORD.findall(folded)
    return _stem([word for word in words if word not in STOP_WORDS] or words)


def _stem(words: list[str]) -> list[str]:
    if not hasattr(_of_thread, "stemmer"):
        _of_thread.stemmer = Stemmer.Stemmer(LANGUAGE)
    stemmed: list[str] = _of_thread.stemmer.stemWords(words)
    return stemmed


def build_lexical(texts: list[str]) -> LexicalIndex:
    """Build an index over texts, in their order."""
    bm25s = _import_bm25s()
    words = [split_words(text) for text in texts]
    if not any(words):
        return LexicalIndex(None, len(texts))
    bm25 = bm25s.BM25(k1=K1, b=B, method="lucene")
    bm25.index(words, show_progress=False)
    return LexicalIndex(bm25, len(texts))


def save_lexical(index: LexicalIndex, folder: Path) -> None:
    """Write an index into a folder: NumPy arrays and JSON, no pickle."""
    if index.bm25 is not None:
        index.bm25.save(folder, show_progress=False)


def load_lexical(folder: Path, size: int) -> LexicalIndex:
    """Read an index from a folder whose checksums were verified."""
    if not (folder / "params.index.json").is_file():
        return LexicalIndex(None, size)
    return LexicalIndex(_import_bm25s().BM25.load(folder, show_progress=False), size)


def score_lexical(index: LexicalIndex, query: str) -> NDArray[np.float32]:
    """Return (chunks,) float32: the BM25 score of every chunk, 0 where no word matches."""
    if index.bm25 is None:
        return np.zeros(index.size, dtype=np.float32)
    vocabulary = index.bm25.vocab_dict
    numbers = [vocabulary[word] for word in split_words(query) if word in vocabulary]
    if not numbers:
        return np.zeros(index.size, dtype=np.float32)
    return np.asarray(index.bm25.get_scores_from_ids(numbers), dtype=np.float32)


def pick_best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the positions of the best scores above 0, best first; of equal ones the earlier first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > count:
        found = found[np.argpartition(-scores[found], count - 1)[:count]]
        found.sort()
    return found[np.argsort(-scores[found], kind="stable")]
