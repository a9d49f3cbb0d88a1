"""Lexical search: BM25 over stemmed words without stop words.

Scores are made when a query comes, from counts and lengths, so that chunks may come and go at the cost of the change,
and are the same to the bit however the chunks are divided into runs (docs/decisions/0042). Does not know the database,
vectors or fusion.

Source: Robertson and Zaragoza, «The Probabilistic Relevance Framework», 2009; idf and the missing factor (k1 + 1) as
Lucene has them.
"""

import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from sys import intern

import numpy as np
import Stemmer
from numpy.typing import NDArray

from retrieval.postings import Postings, build_postings, find_entries
from retrieval.stop_words import LANGUAGE, STOP_WORDS

K1 = 0.9
B = 0.6
VOWEL_SIGNS = "".join(chr(code) for code in range(0x0900, 0x0E00) if unicodedata.category(chr(code))[0] == "M")
"""Parts of words in the scripts of India that are no letters to `re`."""
WORD = re.compile(rf"[^\W_]+(?:[{VOWEL_SIGNS}]+[^\W_]*)*")
SEPARATORS = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()})
"""What is no part of a WORD in ASCII; splitting so is several times as quick."""
KEPT_STEMS = 10_000
ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")
"""Marks over or under a Latin letter, once it stands apart from them."""
_NONSPACING = "".join(chr(code) for code in range(0x0300, 0x0900) if unicodedata.category(chr(code)) == "Mn")
POINTS = re.compile(f"[{_NONSPACING}\u200d]+")
"""Signs of stress and of vowels that no letter holds, as in Russian, Hebrew and Arabic, mostly left out in writing; and
what joins letters without being seen."""


@dataclass(frozen=True, slots=True)
class LexicalIndex:
    """Runs of inverted lists one after the other; a position in the index counts through all of them.

    Attributes:
        runs: Their lists.
        offsets: (runs + 1,) int64: position of each run's first chunk, and how many positions there are.
        live: (positions,) bool: which chunks count; None: all.
        count: Chunks that count.
        words: Words of these.
        language: What they are stemmed as.
    """

    runs: tuple[Postings, ...]
    offsets: NDArray[np.int64]
    live: NDArray[np.bool_] | None
    count: int
    words: int
    language: str = LANGUAGE

    @property
    def size(self) -> int:
        """How many positions there are."""
        return int(self.offsets[-1])


_of_thread = threading.local()  # a stemmer may not be used by two threads at once


class _Stems(dict[str, str]):
    """The stem of each word in a language; those that were asked for are kept."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self._stem = Stemmer.Stemmer(language, 0).stemWord

    def __missing__(self, word: str) -> str:
        if len(self) >= KEPT_STEMS:
            self.clear()
        stem = self[word] = intern(self._stem(word))
        return stem


def split_words(text: str, language: str = LANGUAGE) -> list[str]:
    """Return the words of a text as they are compared: folded, without accents and stop words, stemmed.

    A text of nothing but stop words keeps them, so that it can still be found.

    Args:
        text: Any.
        language: One of Snowball's stemmers.
    """
    words = _cut(_fold(text))
    stop_words = _fold_stop_words(language)
    return _stem([word for word in words if word not in stop_words] or words, language)


def list_words(text: str, language: str = LANGUAGE) -> list[str]:
    """Return every word of a text in its order, as `split_words` makes them, but with the stop words."""
    return _stem(_cut(_fold(text)), language)


def _cut(folded: str) -> list[str]:
    return folded.translate(SEPARATORS).split() if folded.isascii() else WORD.findall(folded)


def _fold(text: str) -> str:
    """Return a text in small letters, those of the Latin alphabet without their accents, others without points."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return folded
    folded = unicodedata.normalize("NFC", ACCENTS.sub("", unicodedata.normalize("NFD", folded)))
    return POINTS.sub("", folded)


@cache
def _fold_stop_words(language: str) -> frozenset[str]:
    return frozenset(map(_fold, STOP_WORDS.get(language, ())))


def _stem(words: list[str], language: str) -> list[str]:
    known: dict[str, _Stems] = _of_thread.__dict__
    if language not in known:
        known[language] = _Stems(language)
    stems = known[language]
    return [stems[word] for word in words]


def build_run(texts: Iterable[str], language: str = LANGUAGE) -> Postings:
    """Build the inverted lists of texts, in their order."""
    return build_postings(split_words(text, language) for text in texts)


def make_lexical(
    runs: Sequence[Postings], live: NDArray[np.bool_] | None = None, language: str = LANGUAGE
) -> LexicalIndex:
    """Make an index of runs, in their order.

    Args:
        runs: Inverted lists.
        live: (positions,) bool: which chunks count; None: all.
        language: What their words are stemmed as.
    """
    offsets = np.cumsum([0, *(len(run.lengths) for run in runs)])
    lengths = [
        run.lengths if live is None else run.lengths[live[offset : offset + len(run.lengths)]]
        for run, offset in zip(runs, offsets[:-1], strict=True)
    ]
    words = sum(int(part.sum(dtype=np.int64)) for part in lengths)
    return LexicalIndex(tuple(runs), offsets, live, sum(map(len, lengths)), words, language)


def build_lexical(texts: Iterable[str], language: str = LANGUAGE) -> LexicalIndex:
    """Build an index of one run over texts, in their order, their words stemmed in a language."""
    return make_lexical([build_run(texts, language)], language=language)


def score_lexical(index: LexicalIndex, query: str) -> NDArray[np.float32]:
    """Return (positions,) float32: the BM25 score of every chunk, 0 where no word matches."""
    scores = np.zeros(index.size, dtype=np.float32)
    for word, times in Counter(split_words(query, index.language)).items():
        places = [find_entries(run, word) for run in index.runs]
        rarity = _weigh(index, places)
        if not rarity:
            continue
        weight = np.float32(times * rarity)
        for run, offset, place in zip(index.runs, index.offsets[:-1], places, strict=True):
            if place.start < place.stop:
                chunks = run.chunks[place]
                scores[offset : offset + len(run.lengths)][chunks] += weight * _saturate(index, run, place, chunks)
    return scores


def weigh_words(index: LexicalIndex, words: Iterable[str]) -> dict[str, float]:
    """Return how rare each word is, as `score_lexical` weighs it; words that no chunk holds are left out.

    Args:
        index: The index.
        words: As `split_words` makes them.
    """
    rarities = {word: _weigh(index, [find_entries(run, word) for run in index.runs]) for word in set(words)}
    return {word: rarity for word, rarity in rarities.items() if rarity}


def _weigh(index: LexicalIndex, places: Sequence[slice]) -> float:
    """Return the idf of a word by where its entries lie in each run; 0 where none does."""
    found = _count_chunks(index, places)
    return math.log1p((index.count - found + 0.5) / (found + 0.5)) if found else 0.0


def _count_chunks(index: LexicalIndex, places: Sequence[slice]) -> int:
    """Return in how many chunks that count a word stands."""
    if index.live is None:
        return sum(place.stop - place.start for place in places)
    return sum(
        int(np.count_nonzero(index.live[offset : offset + len(run.lengths)][run.chunks[place]]))
        for run, offset, place in zip(index.runs, index.offsets[:-1], places, strict=True)
        if place.start < place.stop
    )


def _saturate(index: LexicalIndex, run: Postings, place: slice, chunks: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return (entries,) float32: a word's frequencies, saturated by k1 and seen against the chunk's length by b."""
    counts = run.counts[place].astype(np.float32)
    lengths = run.lengths[chunks].astype(np.float32)
    base, slope = np.float32(K1 * (1 - B)), np.float32(K1 * B * index.count / index.words)
    return np.asarray(counts / (counts + (base + slope * lengths)), dtype=np.float32)


def pick_best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the positions of the best scores above 0, best first; of equal ones the earlier first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > count:
        found = found[np.argpartition(-scores[found], count - 1)[:count]]
        found.sort()
    return found[np.argsort(-scores[found], kind="stable")]
