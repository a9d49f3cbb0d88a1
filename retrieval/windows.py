"""Texts as a model reads them: tokens, their places, and windows for what is longer than it reads.

Does not know models, vectors or stores.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

WINDOW_OVERLAP_TOKENS = 32
MAX_HEADING_SHARE = 0.3
"""Most of a window that a repeated heading may take; of a longer one the innermost end is repeated."""


class TokenReader(Protocol):
    """What reads texts up to some length: an embedder, or a reranker beside a query."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that are read at once, special tokens left out."""

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text starts, as rising character offsets; nothing is cut off."""


def copy_tokenizer(model: Any) -> Any:
    """Return a model's fast tokenizer alone, without truncation and padding: safe in any thread."""
    return copy_untruncated(model.tokenizer.backend_tokenizer)


def copy_untruncated(tokenizer: Any) -> Any:
    """Return a copy of a fast tokenizer that cuts nothing off and pads nothing."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def use_all_cores() -> None:
    """Let tokenizers work on all cores of this process from here on: beside a card one core would be what is slowest.

    The offline switch stills their threads because of forks that do not execute another program; the processes that
    search and ingest make none.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true"


def find_token_starts(tokenizer: Any, text: str) -> list[int]:
    """Return where each token of a text starts, as rising character offsets; special tokens are left out."""
    return [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]


def contextualise(heading: str | None, text: str) -> str:
    """Return what is embedded for a chunk: its heading path, then its text."""
    return f"{heading}\n{text}" if heading else text


def cut_windows(heading: str | None, text: str, reader: TokenReader) -> list[str]:
    """Cut what is read for a chunk into windows that the reader reads to their end.

    Args:
        heading: Heading path, repeated in every window.
        text: The chunk's text.
        reader: Tells how long a window may be.

    Returns:
        One window where all fits, else several that overlap; nothing is left out.
    """
    whole = contextualise(heading, text)
    limit = reader.max_tokens
    if len(reader.token_starts(whole)) <= limit:
        return [whole]
    heading = _shorten_heading(heading, int(limit * MAX_HEADING_SHARE), reader)
    room = limit - len(reader.token_starts(contextualise(heading, "")))
    starts = reader.token_starts(text)
    overlap = min(WINDOW_OVERLAP_TOKENS, room // 4)
    windows = []
    for first in range(0, max(1, len(starts) - overlap), room - overlap):
        last = first + room
        end = starts[last] if last < len(starts) else len(text)
        begin = starts[first] if first else 0
        windows.append(contextualise(heading, text[begin:end].strip()))
    return windows


def _shorten_heading(heading: str | None, limit: int, reader: TokenReader) -> str | None:
    """Return the innermost end of a heading that is longer than the limit, in tokens."""
    if heading is None:
        return None
    starts = reader.token_starts(heading)
    return heading if len(starts) <= limit else heading[starts[len(starts) - limit] :]
