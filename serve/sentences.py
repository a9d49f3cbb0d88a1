"""Sentences of a text that is still being written: where one ends, piece by piece as it comes.

Removes citation marks that the model made up, and finds the ends of sentences. However the text is cut into pieces, the
result is the same as for the whole. Does not know what a source is.
"""

import re
from dataclasses import dataclass

MARK = re.compile(r"[ \t]*(?:\[\d[\d ,;\u2013-]{0,29}\]|【[^】\n]{0,60}】)")
"""A citation mark as models make them up: [1], [1, 2], 【3†source】, with the blanks in front of it."""
MARK_BEGUN = re.compile(r"[ \t]*(?:\[(?:\d[\d ,;\u2013-]{0,29})?|【[^】\n]{0,60})?\Z")
"""The end of a text that may yet become a mark."""

LIST_ITEM = re.compile(r"\s*(?:\d{1,3}[.)]|[-*•–])\s")
"""How a line of a list begins; the whole line counts as one sentence."""
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*\Z")
LAST_WORD = re.compile(r"([^\s(\[\"'“‘]+)\.[\"'”’»)\]*_]*\Z")

ABBREVIATIONS = frozenset(
    {
        "e.g", "i.e", "etc", "cf", "vs", "approx", "mr", "mrs", "ms", "dr", "prof", "st", "ca", "incl", "excl", "ext",
        "tel", "min", "max", "temp", "dept", "z.b", "d.h", "bzw", "usw", "inkl", "zzgl",
    }
)  # fmt: skip
"""Words whose dot ends no sentence."""
NUMBER_ABBREVIATIONS = frozenset({"no", "nr", "art", "sec", "fig", "p", "pp", "ch", "para", "vol"})
"""Words whose dot ends no sentence before a number."""


class MarkRemover:
    """Removes the model's own citation marks from a stream of text, holding back only what may become one."""

    def __init__(self) -> None:
        """Begin."""
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain by now."""
        text = self._held + text
        begun = MARK_BEGUN.search(text)
        end = begun.start() if begun else len(text)
        self._held = text[end:]
        return MARK.sub("", text[:end])

    def finish(self) -> str:
        """Return what was held back and became no mark."""
        held, self._held = self._held, ""
        return MARK.sub("", held)


def remove_marks(text: str) -> str:
    """Return a whole text without citation marks."""
    return MARK.sub("", text)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next stretch of a text.

    Attributes:
        text: What comes next.
        sentence: The sentence that ends with this stretch, without blanks around it; None where none does.
    """

    text: str
    sentence: str | None = None


class SentenceSplitter:
    """Finds the ends of sentences in a stream of text.

    Blanks after a sentence belong to the next piece, so that a mark put after a piece with a sentence stands directly
    behind its last character. Joined, the pieces are the text.
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._sentence = ""  # of the sentence so far, without blanks in front
        self._blanks = ""  # seen after the last other character, not yet given out
        self._is_list_item = False
        self._line_has_boundary = False

    def feed(self, text: str) -> list[Piece]:
        """Take the next stretch of the text.

        Args:
            text: Any number of characters.

        Returns:
            What is certain by now; a blank waits for the character after it.
        """
        pieces: list[Piece] = []
        written = ""
        for character in text:
            if character.isspace():
                if character == "\n" and self._sentence:
                    pieces.append(self._end_sentence(written))
                    written = ""
                if character == "\n":
                    self._line_has_boundary = self._is_list_item = False
                self._blanks += character
                continue
            if self._blanks and self._sentence:
                self._is_list_item = self._is_list_item or self._begins_list_item()
                if not self._is_list_item and is_boundary(self._sentence, character):
                    pieces.append(self._end_sentence(written))
                    written = ""
                    self._line_has_boundary = True
                else:
                    self._sentence += self._blanks
            written += self._blanks + character
            self._blanks = ""
            self._sentence += character
        if written:
            pieces.append(Piece(written))
        return pieces

    def finish(self) -> list[Piece]:
        """End the text: return the last sentence's end and the blanks that were held back."""
        pieces = [self._end_sentence("")] if self._sentence else []
        if self._blanks:
            pieces.append(Piece(self._blanks))
            self._blanks = ""
        return pieces

    def _begins_list_item(self) -> bool:
        """Tell whether the line so far is nothing but a list's number or dash."""
        return not self._line_has_boundary and LIST_ITEM.fullmatch(self._sentence + " ") is not None

    def _end_sentence(self, written: str) -> Piece:
        piece = Piece(written, self._sentence)
        self._sentence = ""
        return piece


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a whole text."""
    splitter = SentenceSplitter()
    pieces = splitter.feed(text) + splitter.finish()
    return [piece.sentence for piece in pieces if piece.sentence]


def is_boundary(sentence: str, following: str) -> bool:
    """Tell whether a sentence ends where a blank was found.

    Args:
        sentence: The text since the last end.
        following: The first character after the blanks.
    """
    if not SENTENCE_END.search(sentence) or following.islower():
        return False
    last = LAST_WORD.search(sentence)
    if last is None:
        return True
    word = last[1].lower()
    is_initial = len(word) == 1 and word.isalpha()
    return not (word in ABBREVIATIONS or is_initial or (word in NUMBER_ABBREVIATIONS and following.isdigit()))
