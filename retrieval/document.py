"""What a loader makes of a file: clean text and the sections it falls into.

Owns the two dataclasses that loaders fill and chunking reads. Knows nothing of file formats or of chunks.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """A contiguous stretch of a document under one heading, and on one page where there are pages.

    Attributes:
        start: First character, as an offset into Document.text.
        end: One past the last character.
        page: Counted from 1 (a PDF's page, a presentation's slide); None where the format has no pages.
        heading: Heading path joined by " > ", outermost first; None where there is none.
    """

    start: int
    end: int
    page: int | None
    heading: str | None


@dataclass(frozen=True, slots=True)
class Document:
    r"""One parsed file.

    Attributes:
        text: Unicode in NFC, lines ended by "\n", paragraphs parted by an empty line, headings left out.
        sections: In order, without overlap; together they cover every character of text that is not blank.
        attributes: What the document states of itself (front matter): plain values, or lists of those, by key.
    """

    text: str
    sections: tuple[Section, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
