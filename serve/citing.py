"""Citing: which retrieved passage supports a sentence of an answer, decided by code and never by the model.

A sentence is cited to the passage that holds its words and its numbers and is near it in meaning; where none does, it
stands uncited. Sentences that say nothing (a heading, an opening, a closing line, a reference code, a refusal) are
never cited. Works on finished sentences, so that stream and non-stream agree. Does not know where passages come from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import Stemmer

MIN_TERMS = 2
"""A sentence with fewer words of its own says too little to be checked."""
MIN_MATCHED = 2
COVERAGE_WEIGHT = 0.6

NAME = re.compile(r"\b[^\W\d_a-zß-öø-ÿ][^\W\d_]+")
STARTS_A_SENTENCE = frozenset('.!?:…"“„*(')
"""Signs after which a word is capitalized without being a name."""
TERM = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
LIST_NUMBER = re.compile(r"\s*(?:\d{1,3}[.)]|[-+*•–])\s+")
HEADING = re.compile(r"\s*#{1,6}\s")
LABELLED_CODE = re.compile(r"[\w ]{1,24}:\s*[A-Z][A-Z0-9]*(?:[-/_][A-Z0-9]+)+\W*")
"""A line that only names a code, such as «Ref: ACME-RET-2»."""
REFUSAL = re.compile(
    r"\b(?:documents?|passages?|context|sources?)\b.{0,40}(?:\b(?:do|does|is|are|did|can)(?: not|n't|not)\b|\bno\b)"
    r"|\b(?:could|can|do|did)(?: not|n't|not) (?:find|know|say|answer)\b"
    r"|\bnot (?:stated|mentioned|specified)\b|\bnot in the (?:documents?|passages?|context|sources?)\b"
    r"|\bno (?:information|answer|mention)\b",
    re.IGNORECASE,
)
"""A sentence that says that the documents are silent."""

_STOP_WORDS = """
    a about above after again all also am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here
    hers him his how i if in into is it its itself just me more most must my no nor not now of off on once only
    or other our ours out over own please same shall she should so some such than that the their theirs them
    then there these they this those through to too under until up very was we were what when where which while
    who whom why will with within would yes you your yours it's don't"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_STEMMER = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How much support a citation needs; `scripts/calibrate_answers.py` measures what each pair of values comes to.

    Attributes:
        coverage: Least share of a sentence's words and numbers that the passage must hold, 0 to 1.
        similarity: Least cosine of sentence and passage, -1 to 1.
    """

    coverage: float = 0.6
    similarity: float = 0.3


CALIBRATED = Thresholds()


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that the model was given.

    Attributes:
        n: Its number in the answer, from 1, by the order in which the model read them.
        file: The document's name.
        heading: Path of headings above the passage, or None; it counts as said, too.
        chunk_id: The chunk that it is.
        text: What it says.
    """

    n: int
    file: str
    heading: str | None
    chunk_id: str
    text: str

    @property
    def title(self) -> str:
        """Document and heading, as the model read them and as people see them."""
        return f"{self.file} | {self.heading}" if self.heading else self.file


@dataclass(frozen=True, slots=True)
class Terms:
    """The words and numbers of a text, without those that say nothing."""

    words: frozenset[str]
    numbers: frozenset[str]

    def __len__(self) -> int:
        return len(self.words) + len(self.numbers)


@lru_cache(maxsize=1024)
def read_terms(text: str) -> Terms:
    """Return the stemmed content words and the numbers of a text; small numbers in words count as numbers."""
    words, numbers = set(), set()
    for match in TERM.finditer(text.lower().replace("’", "'")):
        term = match[0]
        if term[0].isdigit():
            numbers.add(normalize_number(term))
        elif term in NUMBER_WORDS:
            numbers.add(NUMBER_WORDS[term])
        elif term not in STOP_WORDS and len(term) > 1:
            words.add(_STEMMER.stemWord(term))
    return Terms(frozenset(words), frozenset(numbers))


def normalize_number(text: str) -> str:
    """Return a number without separators of thousands and trailing zeros: 1,200.50 and 1200.5 are the same."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|\Z))", "", text)
    before, point, decimals = text.rpartition(".")
    return before + (point + decimals.rstrip("0")).rstrip(".") if point and decimals.isdecimal() else text


def read_names(sentence: str) -> frozenset[str]:
    """Return the stemmed words that are capitalized within a sentence: names of people, places and products.

    Languages that capitalize every noun have more of them; their sentences must repeat the passage's nouns.
    """
    names = set()
    for match in NAME.finditer(sentence):
        before = sentence[: match.start()].rstrip()
        if before and before[-1] not in STARTS_A_SENTENCE and match[0].lower() not in STOP_WORDS:
            names.add(_STEMMER.stemWord(match[0].lower()))
    return frozenset(names)


def strip_list_number(sentence: str) -> str:
    """Return a sentence without the number or dash of its list."""
    return LIST_NUMBER.sub("", sentence, count=1) if LIST_NUMBER.match(sentence) else sentence


def is_citable(sentence: str) -> bool:
    """Tell whether a sentence says something that a document could support."""
    text = strip_list_number(sentence).strip(" *_#>\t")
    if HEADING.match(sentence) or text.endswith((":", "?")) or LABELLED_CODE.fullmatch(text) or REFUSAL.search(text):
        return False
    return len(read_terms(text)) >= MIN_TERMS


def find_quoted(sentence: str, sources: Sequence[Source]) -> Source | None:
    """Return the first source that holds a sentence word for word; nothing more has to be proven then.

    Long passages hold much else, so that the cosine of one of their sentences with the whole can be low.
    """
    if not is_citable(sentence):
        return None
    words = " ".join(strip_list_number(sentence).split()).rstrip(".!。！").casefold()
    # £1 is not said by £11 nor by £1.40, and 5 bar neither by 2.5 bar nor by -5 bar
    quoted = re.compile(rf"(?<![\w−-])(?<!\d[.,]){re.escape(words)}(?!\w|[.,]\d)")
    return next((source for source in sources if quoted.search(" ".join(source.text.split()).casefold())), None)


def find_candidates(sentence: str, sources: Sequence[Source], thresholds: Thresholds = CALIBRATED) -> dict[int, float]:
    """Return the sources that hold a sentence's words and all of its numbers and names, with the share that they hold.

    Args:
        sentence: A finished sentence.
        sources: What the model was given.
        thresholds: How much support a citation needs.

    Returns:
        Coverage, 0 to 1, by position in `sources`; empty where the sentence cannot be cited.
    """
    if not is_citable(sentence):
        return {}
    text = strip_list_number(sentence)
    said, names = read_terms(text), read_names(text)
    candidates = {}
    for position, source in enumerate(sources):
        held = read_terms(f"{source.heading or ''}\n{source.text}")
        words = held.words | read_terms(source.file).words  # a file is named after what it is about
        if not (said.numbers <= held.numbers and names <= words):
            continue
        matched = len(said.words & words) + len(said.numbers)
        coverage = matched / len(said)
        if matched >= MIN_MATCHED and coverage >= thresholds.coverage:
            candidates[position] = coverage
    return candidates


def choose_source(
    candidates: dict[int, float],
    similarities: Sequence[float],
    sources: Sequence[Source],
    thresholds: Thresholds = CALIBRATED,
) -> Source | None:
    """Return the source that supports a sentence best, or None where none is near enough.

    Args:
        candidates: What `find_candidates` returned.
        similarities: Cosine of the sentence and each source.
        sources: What the model was given.
        thresholds: How much support a citation needs.
    """
    near = {
        position: COVERAGE_WEIGHT * coverage + (1 - COVERAGE_WEIGHT) * similarities[position]
        for position, coverage in candidates.items()
        if similarities[position] >= thresholds.similarity
    }
    return sources[max(near, key=lambda position: (near[position], -position))] if near else None


@dataclass(frozen=True, slots=True)
class Citation:
    """A mark in an answer's text.

    Attributes:
        source: What supports the sentence before it.
        start: Where the mark begins, in characters (code points) from the answer's begin.
        end: One past its end: text[start:end] is the mark, [n].
    """

    source: Source
    start: int
    end: int


@dataclass(slots=True)
class CitedText:
    """How far an answer's text has come, so that each mark knows where it stands.

    Attributes:
        length: Characters (code points) so far, marks included.
    """

    length: int = 0

    def write(self, text: str) -> str:
        """Add the answer's own text; return it."""
        self.length += len(text)
        return text

    def cite(self, source: Source) -> tuple[str, Citation]:
        """Add a mark for a source; return it with the blank in front, and where it stands."""
        mark = f" [{source.n}]"
        start = self.length + 1
        self.length += len(mark)
        return mark, Citation(source, start, self.length)
