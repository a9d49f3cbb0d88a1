"""Cutting a document into chunks: by structure or at a fixed length, in the embedder's tokens, with exact offsets.

By structure, a section is cut only where it is too long: between paragraphs, then between lines (list items, table
rows), then between sentences, then between words; chunks never cross a section, so each has one heading and one page.
At a fixed length, the document is cut into windows that share their ends; each has the heading and page that it begins
under. Either way chunks cover every character that is not blank. Does not know how text is embedded; it only counts
tokens.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from retrieval.config import ChunkingConfig, ChunkingMode
from retrieval.document import Document, Section

TokenStarts = Callable[[str], Sequence[int]]
"""Where each token of a text starts, as rising character offsets."""

SEPARATORS = (
    re.compile(r"\n[^\S\n]*\n\s*"),  # between paragraphs
    re.compile(r"\n\s*"),  # between lines: list items, table rows
    re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+"),  # between sentences
    re.compile(r"\s+"),  # between words
)
SENTENCE_LEVEL = 2
"""Index of the separator from which on a cut goes through a paragraph, so that the next chunk repeats a little."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document.

    Attributes:
        start: First character, as an offset into the document's text.
        end: One past the last.
        page: The section's.
        heading: The section's.
    """

    start: int
    end: int
    page: int | None
    heading: str | None


_Ruler = tuple[Callable[[int, int], int], Callable[[int, int], int]]
"""How many tokens start in a stretch, and where its middle one starts."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch that stays together. `level` names the separator before it; 0 is the coarsest."""

    start: int
    end: int
    level: int


def cut_document(document: Document, config: ChunkingConfig, token_starts: TokenStarts) -> list[Chunk]:
    """Cut a document into chunks.

    Args:
        document: Text and sections.
        config: Longest chunk and overlap, in tokens, and how to cut.
        token_starts: The embedder's tokenizer.

    Returns:
        Chunks in order. Each is a slice without blanks at its ends; what lies between them is blank.
    """
    if config.mode is ChunkingMode.static:
        return list(_cut_windows(document, config, token_starts(document.text)))
    chunks: list[Chunk] = []
    for section in document.sections:
        chunks += _cut_section(document.text, section, config, token_starts)
    return chunks


def _cut_windows(document: Document, config: ChunkingConfig, starts: Sequence[int]) -> Iterator[Chunk]:
    """Yield windows of `max_tokens`, each of which begins `overlap_tokens` before the end of the one before.

    Both ends are moved to the nearest word, as far as that makes a window shorter by at most an eighth.
    Source: OpenAI's description of StaticChunkingStrategy.
    """
    text, total = document.text, len(starts)
    slack = config.max_tokens // 8
    section_starts = [section.start for section in document.sections]
    first = 0
    while True:
        last = min(first + config.max_tokens, total)
        if last < total:
            last = _find_word(text, starts, last, last - slack)
        start, end = _strip(text, starts[first] if first else 0, starts[last] if last < total else len(text))
        if start < end:
            section = document.sections[max(bisect_right(section_starts, start) - 1, 0)]
            yield Chunk(start, end, section.page, section.heading)
        if last == total:
            return
        first = _find_word(text, starts, last - config.overlap_tokens, last)


def _find_word(text: str, starts: Sequence[int], token: int, limit: int) -> int:
    """Return the first token from one towards another (included) that begins a word; the first where none does."""
    step = 1 if limit >= token else -1
    for candidate in range(token, limit + step, step):
        if text[starts[candidate] - 1 : starts[candidate]].isspace():
            return candidate
    return token


def _cut_section(text: str, section: Section, config: ChunkingConfig, token_starts: TokenStarts) -> Iterator[Chunk]:
    start, end = _strip(text, section.start, section.end)
    if start == end:
        return
    starts = [start + offset for offset in token_starts(text[start:end])]

    def count(first: int, last: int) -> int:
        return bisect_left(starts, last) - bisect_left(starts, first)

    def halve(first: int, last: int) -> int:
        return starts[(bisect_left(starts, first) + bisect_left(starts, last)) // 2]

    pieces = list(_split(text, _Piece(start, end, 0), 0, (count, halve), config.max_tokens))
    for first, last in _pack(pieces, count, config):
        yield Chunk(*_strip(text, first, last), section.page, section.heading)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the stretch without the blanks at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _split(text: str, piece: _Piece, level: int, ruler: _Ruler, limit: int) -> Iterator[_Piece]:
    """Yield the pieces of a stretch, none longer than the limit, split no finer than needed."""
    count, _ = ruler
    if count(piece.start, piece.end) <= limit:
        yield piece
        return
    if level == len(SEPARATORS):
        yield from _split_word(piece, ruler, limit)
        return
    begin, outer = piece.start, piece.level
    for separator in SEPARATORS[level].finditer(text, piece.start, piece.end):
        if begin < separator.start():
            yield from _split(text, _Piece(begin, separator.end(), outer), level + 1, ruler, limit)
            begin, outer = separator.end(), level
    if begin < piece.end:
        yield from _split(text, _Piece(begin, piece.end, outer), level + 1, ruler, limit)


def _split_word(piece: _Piece, ruler: _Ruler, limit: int) -> Iterator[_Piece]:
    """Yield a word of more tokens than the limit in halves: long identifiers, text without spaces.

    Cut where a token starts: a token cut in two would be two.
    """
    count, halve = ruler
    if count(piece.start, piece.end) <= limit:
        yield piece
        return
    middle = halve(piece.start, piece.end)
    yield from _split_word(_Piece(piece.start, middle, piece.level), ruler, limit)
    yield from _split_word(_Piece(middle, piece.end, len(SEPARATORS)), ruler, limit)


def _pack(
    pieces: Sequence[_Piece], count: Callable[[int, int], int], config: ChunkingConfig
) -> Iterator[tuple[int, int]]:
    """Yield stretches of whole pieces, of about equal length, none longer than the limit.

    A stretch that begins inside a paragraph repeats the end of the one before, within the overlap.
    """
    total = count(pieces[0].start, pieces[-1].end)
    parts = max(1, -(-total // config.max_tokens))  # 1 also where a tokenizer drops all there is: no token, one piece
    target = total / parts  # so that no small rest is left over at the end
    first = 0
    for index, piece in enumerate(pieces):
        if index == first:
            continue
        length = count(pieces[first].start, pieces[index - 1].end)
        grown = count(pieces[first].start, piece.end)
        if grown > config.max_tokens or grown - target > target - length:
            yield pieces[first].start, pieces[index - 1].end
            first = _step_back(pieces, index, first, count, config)
    yield pieces[first].start, pieces[-1].end


def _step_back(
    pieces: Sequence[_Piece], index: int, earlier: int, count: Callable[[int, int], int], config: ChunkingConfig
) -> int:
    """Return the piece that the next stretch begins with: the one at `index`, or one before it as an overlap."""
    first = index
    while (
        pieces[first].level >= SENTENCE_LEVEL
        and first - 1 > earlier
        and count(pieces[first - 1].start, pieces[index].start) <= config.overlap_tokens
        and count(pieces[first - 1].start, pieces[index].end) <= config.max_tokens
    ):
        first -= 1
    return first
