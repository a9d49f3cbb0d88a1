"""Sentences of a text that is still being written: where one ends, piece by piece as it comes.

Removes citation marks that the model made up, finds the ends of sentences, and leaves code as it is: values[0] is no
mark, and one put behind a block's last line would keep the block open. However the text is cut into pieces, the result
is the same as for the whole. Does not know what a source is.
"""

import re
from dataclasses import dataclass

from serve.fenced_code import CodeSplitter, Stretch

MARK = re.compile(r"(?<![ \t])[ \t]*(?:\[\d[\d ,;\u2013-]{0,29}\]|【[^】\n]{0,60}】)")
"""A citation mark as models make them up, such as [1], [1, 2], 【3†source】, with the blanks in front of it. The look
behind keeps a long run of blanks from being tried at every blank."""
MARK_BEGUN = re.compile(r"(?<![ \t])[ \t]*(?:\[(?:\d[\d ,;\u2013-]{0,29})?|【[^】\n]{0,60})?\Z")
"""The end of a text that may yet become a mark."""

LIST_MARKER = re.compile(r"\d{1,3}[.)]|[-*•–]")
"""How a line of a list begins; the whole line counts as one sentence."""
LIST_MARKER_BEGUN = re.compile(r"\d{1,3}[.)]?|[-*•–]")
LINE_END = re.compile(r"[.!?…。！？:：][\"'”’»)\]*_]*\Z")
"""A line that ends so ends its sentence, too."""
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*\Z")
LAST_WORD = re.compile(r"([^\s(\[\"'“‘]+)\.[\"'”’»)\]*_]*\Z")

TAIL = 64
"""Characters at the end of a sentence that tell whether it is one; looking at more would cost time in long ones."""

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
    """Return a whole text without citation marks; what looks like one in code stays."""
    code = CodeSplitter()
    stretches = code.feed(text) + code.finish()
    return "".join(MARK.sub("", one.text) if one.kind == "text" else one.text for one in stretches)


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

    A sentence ends at its last sign, at an empty line, and at the end of a list's line; a line that is merely wrapped
    goes on in the next. Blanks after a sentence belong to the next piece, so that a mark put after a piece with a
    sentence stands directly behind its last character. Joined, the pieces are the text.
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._pieces: list[Piece] = []
        self._written = ""  # given out with the next piece
        self._sentence = ""  # of the sentence so far, without blanks in front
        self._blanks = ""  # seen after the last other character, not yet given out
        self._marker = ""  # begins the next line and may yet become a list's number or dash
        self._is_list_item = False
        self._begins_line = True

    def feed(self, text: str) -> list[Piece]:
        """Take the next stretch of the text.

        Args:
            text: Any number of characters.

        Returns:
            What is certain by now; a blank waits for the character after it.
        """
        for character in text:
            self._take(character)
        return self._give()

    def finish(self) -> list[Piece]:
        """End the text: return the last sentence's end and the blanks that were held back; what follows begins anew."""
        if self._marker:
            self._go_on()
        if self._sentence:
            self._end_sentence()
        self._written += self._blanks
        self._blanks, self._begins_line = "", True
        return self._give()

    def _give(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        if self._written:
            pieces.append(Piece(self._written))
            self._written = ""
        return pieces

    def _take(self, character: str) -> None:
        if self._marker:
            self._take_after_marker(character)
        elif character.isspace():
            self._take_blank(character)
        elif not self._sentence:
            self._begins_line = self._begins_line or "\n" in self._blanks
            self._write(character)
        elif "\n" in self._blanks:
            self._marker = character
            if not LIST_MARKER_BEGUN.fullmatch(character):
                self._go_on()
        else:
            if self._blanks:
                self._end_sentence_before(character)
            self._write(character)

    def _end_sentence_before(self, following: str) -> None:
        """Decide whether the sentence ends at the blanks before a character of the same line."""
        if self._begins_line and LIST_MARKER.fullmatch(self._sentence):
            self._is_list_item = True
        elif not self._is_list_item and is_boundary(self._sentence, following):
            self._end_sentence()
            self._begins_line = False

    def _take_blank(self, character: str) -> None:
        """Hold a blank back; end the sentence where the line's end ends it."""
        is_line_end = character == "\n" and self._sentence
        if is_line_end and (self._is_list_item or "\n" in self._blanks or LINE_END.search(self._sentence[-TAIL:])):
            self._end_sentence()
        self._blanks += character

    def _take_after_marker(self, character: str) -> None:
        """Decide whether the new line is a list's: then the sentence has ended before it, else it goes on."""
        if character.isspace() and LIST_MARKER.fullmatch(self._marker):
            self._end_sentence()
            marker, self._marker = self._marker, ""
            self._begins_line = True
            self._write(marker)
            self._take_blank(character)
        elif LIST_MARKER_BEGUN.fullmatch(self._marker + character):
            self._marker += character
        else:
            self._go_on()
            self._take(character)

    def _go_on(self) -> None:
        """Take what was held back for the sentence's own."""
        marker, self._marker = self._marker, ""
        self._write(marker)

    def _write(self, text: str) -> None:
        if self._sentence:
            self._sentence += self._blanks
        self._sentence += text
        self._written += self._blanks + text
        self._blanks = ""

    def _end_sentence(self) -> None:
        self._pieces.append(Piece(self._written, self._sentence))
        self._written = self._sentence = ""
        self._is_list_item = False


class AnswerSplitter:
    """Parts an answer that is being written at the ends of its sentences, without the model's own citation marks.

    A block of code ends the sentence before it and is part of none.
    """

    def __init__(self) -> None:
        """Begin an answer."""
        self._code = CodeSplitter()
        self._marks = MarkRemover()
        self._sentences = SentenceSplitter()

    def feed(self, text: str) -> list[Piece]:
        """Take the next stretch of the answer; return what is certain by now."""
        return [piece for stretch in self._code.feed(text) for piece in self._take(stretch)]

    def finish(self) -> list[Piece]:
        """End the answer: return all that was held back."""
        pieces = [piece for stretch in self._code.finish() for piece in self._take(stretch)]
        return pieces + self._sentences.feed(self._marks.finish()) + self._sentences.finish()

    def _take(self, stretch: Stretch) -> list[Piece]:
        if stretch.kind == "text":
            return self._sentences.feed(self._marks.feed(stretch.text))
        pieces = self._sentences.feed(self._marks.finish())
        if stretch.kind == "span":
            return pieces + self._sentences.feed(stretch.text)
        return [*pieces, *self._sentences.finish(), Piece(stretch.text)]


def is_boundary(sentence: str, following: str) -> bool:
    """Tell whether a sentence ends where a blank was found.

    Args:
        sentence: The text since the last end.
        following: The first character after the blanks.
    """
    tail = sentence[-TAIL:]
    if not SENTENCE_END.search(tail) or following.islower():
        return False
    last = LAST_WORD.search(tail)
    if last is None:
        return True
    word = last[1].lower()
    is_initial = len(word) == 1 and word.isalpha()
    return not (word in ABBREVIATIONS or is_initial or (word in NUMBER_ABBREVIATIONS and following.isdigit()))
