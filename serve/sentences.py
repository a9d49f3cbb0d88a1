"""Sentences of a text that is still being written: where one ends, piece by piece as it comes.

Removes citation marks that the model made up, finds the ends of sentences, and leaves code as it is: values[0] is no
mark, and one put behind a block's last line would keep the block open. However the text is cut into pieces, the result
is the same as for the whole. Does not know what a source is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from serve.fenced_code import CodeSplitter, Stretch
from serve.word_marks import WordMarkRemover

_FILL = " \t\u00a0\u00ad\u2007\u2009\u200a\u200b-\u200f\u202a-\u202f\u2060-\u2064\ufeff"
"""Blanks and signs that nobody sees."""
_GONE = "\0"
"""Stands for a mark that was removed, for as long as it may be what another one holds."""
MARK = re.compile(rf"[\[［][\^{_FILL}]*[\d{_GONE}][\d{_GONE},;^\u2013\-{_FILL}]{{0,29}}[\]］]")
"""A citation mark as models make them up, such as [1], [1, 2], [^3], [[4]]."""
LIVE = re.compile(rf"[\d\[\]［］,;^\u2013\-{_FILL}]+")
"""What marks are made of: none reaches beyond a run of it, however many stand within one another."""
OPENING = re.compile(r"[\[［]")
MAX_NESTED = 32
"""Marks within one another; whoever writes more loses the brackets."""
LENTICULAR = re.compile(
    r"(?<![ \t])[ \t]*【(?=[^】\n]{1,60}】)(?:[\d,;:\u2013\- \t]*\d[\d,;:\u2013\- \t]*|[^】\n†]*†[^】\n]*)】"
)
"""The same as OpenAI's models write it, such as 【3†source】, with the blanks in front of it; 【重要】 is Japanese for
"important". The look behind keeps a long run of blanks from being tried at every blank."""
LENTICULAR_BEGUN = re.compile(r"(?<![ \t])[ \t]*(?:【[^】\n]{0,60})?\Z")
"""The end of a text that may yet become one."""

LIST_MARKER = re.compile(r"\d{1,3}[.)]|[-+*•–]|#{1,6}")
"""How a line of a list, or a heading, begins; the whole line counts as one sentence."""
LIST_MARKER_BEGUN = re.compile(r"\d{1,3}[.)]?|[-+*•–]|#{1,6}")
_CLOSING = r"[\"'”’»)\]*_」』）》]*"
LINE_END = re.compile(rf"[.!?…。！？؟۔।:：]{_CLOSING}\Z")
"""A line that ends so ends its sentence, too."""
SENTENCE_END = re.compile(rf"[.!?…。！？؟۔।]{_CLOSING}\Z")
WIDE_END = re.compile(rf"[。！？]{_CLOSING}\Z")
"""The end of a sentence in scripts that put no blank behind it."""
GOES_ON = frozenset("。！？\"'”’»)]*_」』）》")
"""What belongs to such an end where it follows one."""
LAST_WORD = re.compile(rf"([^\s(\[\"'“‘]+)\.{_CLOSING}\Z")

TAIL = 64
"""Characters at the end of a sentence that tell whether it is one; looking at more would cost time in long ones."""

ABBREVIATIONS = frozenset(
    {
        "e.g", "i.e", "etc", "cf", "vs", "approx", "mr", "mrs", "ms", "dr", "prof", "st", "ca", "incl", "excl", "ext",
        "tel", "min", "max", "temp", "dept", "z.b", "d.h", "bzw", "usw", "inkl", "zzgl", "vgl", "ggf",
        "bzgl", "evtl", "p.o", "mt",
    }
)  # fmt: skip
"""Words whose dot ends no sentence."""
NUMBER_ABBREVIATIONS = frozenset(
    {
        "no", "nos", "nr", "art", "sec", "fig", "p", "pp", "ch", "para", "vol", "abs", "kap", "tab",
        "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
    }
)  # fmt: skip
"""Words whose dot ends no sentence before a number."""
TIME_OF_DAY = re.compile(r"\d ?[ap]\.m\.\Z", re.IGNORECASE)
_AFTER_TIME = """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun Mondays
    Tuesdays Wednesdays Thursdays Fridays Saturdays Sundays ET EST EDT CT CST CDT MT MST MDT PT PST PDT
    GMT UTC BST CET CEST"""
AFTER_TIME = frozenset(_AFTER_TIME.split())
"""Days and time zones, before which the dot of p.m. ends no sentence."""


class MarkRemover:
    """Removes the model's own citation marks from a stream of text, holding back only what may become one."""

    def __init__(self) -> None:
        """Begin."""
        self._lenticular = ""  # held back: may yet become a mark in 【】
        self._held = ""  # held back after those are out: may yet become one in []

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain by now."""
        text = self._lenticular + text
        begun = LENTICULAR_BEGUN.search(text)
        end = begun.start() if begun else len(text)
        self._lenticular = text[end:]
        return self._take(LENTICULAR.sub("", text[:end]))

    def finish(self) -> str:
        """Return what was held back and became no mark."""
        text = self._take(LENTICULAR.sub("", self._lenticular)) + drop_marks(self._held)
        self._lenticular = self._held = ""
        return text

    def _take(self, text: str) -> str:
        """Take what has no marks in 【】; hold back its live end from the first bracket on, with the blanks before."""
        alive = LIVE.match(text[::-1])
        length = alive.end() if alive else 0
        length += len(self._held) if length == len(text) else 0  # what is held is alive
        text = self._held + text
        end = text[len(text) - length :]
        opening = OPENING.search(end)
        certain = end[: opening.start()] if opening else end
        start = len(text) - length + len(certain.rstrip(" \t"))
        self._held = text[start:]
        return drop_marks(text[:start])


def drop_marks(text: str) -> str:
    """Return a text without marks in []; what their removal makes a mark of goes as well, so that none is left."""
    return LIVE.sub(lambda run: _drop_marks(run[0]), text) if OPENING.search(text) else text


def _drop_marks(run: str) -> str:
    for _ in range(MAX_NESTED):
        run, count = MARK.subn(_GONE, run)
        if not count:
            break
    else:
        run = OPENING.sub("", run)
    return re.sub(rf"(?<![ \t])[ \t]*{_GONE}", "", run)


def remove_marks(text: str) -> str:
    """Return a whole text without citation marks; what looks like one in code stays."""
    code, marks = CodeSplitter(), MarkRemover()
    parts = []
    for one in code.feed(text) + code.finish():
        parts += [marks.feed(one.text)] if one.kind == "text" else [marks.finish(), one.text]
    return "".join([*parts, marks.finish()])


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

    A sentence ends at its last sign, at an empty line, and at the end of a list's line or a heading; a line that is
    merely wrapped goes on in the next. Blanks after a sentence belong to the next piece, so that a mark put after a
    piece with a sentence stands directly behind its last character. Joined, the pieces are the text.
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._pieces: list[Piece] = []
        self._written = ""  # given out with the next piece
        self._sentence = ""  # of the sentence so far, without blanks in front
        self._blanks = ""  # seen after the last other character, not yet given out
        self._marker = ""  # begins the next line and may yet become a list's number or dash
        self._day = ""  # follows a time of day and may yet become the name of a day
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
        if self._day:
            self._take_day()
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
        elif self._day:
            self._take_after_time(character)
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
            if self._blanks and self._follows_time() and begins_after_time(character):
                self._day = character
                return
            if self._blanks:
                self._end_sentence_before(character)
            elif self._ends_wide() and character not in GOES_ON and not self._is_list_item:
                self._end_sentence()
                self._begins_line = False
            self._write(character)

    def _end_sentence_before(self, following: str) -> None:
        """Decide whether the sentence ends at the blanks before a character of the same line."""
        if self._begins_line and LIST_MARKER.fullmatch(self._sentence):
            self._is_list_item = True
        elif not self._is_list_item and is_boundary(self._sentence, following):
            self._end_sentence()
            self._begins_line = False

    def _follows_time(self) -> bool:
        """Tell whether the sentence so far ends with a time of day, such as 5 p.m."""
        return not self._is_list_item and TIME_OF_DAY.search(self._sentence[-TAIL:]) is not None

    def _take_after_time(self, character: str) -> None:
        """Go on with what may become the name of a day, or decide whether it was one."""
        if begins_after_time(self._day + character):
            self._day += character
            return
        self._take_day(character)
        self._take(character)

    def _take_day(self, following: str = "") -> None:
        """Take what follows a time of day: the name of a day belongs to its sentence, another word begins the next."""
        day, self._day = self._day, ""
        if day not in AFTER_TIME or following.isalnum():
            self._end_sentence()
            self._begins_line = False
        self._write(day)

    def _ends_wide(self) -> bool:
        """Tell whether the sentence so far has an end that needs no blank behind it."""
        return self._sentence[-1] in GOES_ON and WIDE_END.search(self._sentence[-TAIL:]) is not None

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

    def __init__(self, passages: Sequence[str] = ()) -> None:
        """Begin an answer.

        Args:
            passages: What the model was given, in its order; marks in words name them by number.
        """
        self._code = CodeSplitter()
        self._word_marks = WordMarkRemover(passages)
        self._marks = MarkRemover()
        self._sentences = SentenceSplitter()

    def feed(self, text: str) -> list[Piece]:
        """Take the next stretch of the answer; return what is certain by now."""
        return [piece for stretch in self._code.feed(text) for piece in self._take(stretch)]

    def finish(self) -> list[Piece]:
        """End the answer: return all that was held back."""
        pieces = [piece for stretch in self._code.finish() for piece in self._take(stretch)]
        return pieces + self._sentences.feed(self._finish_marks()) + self._sentences.finish()

    def _take(self, stretch: Stretch) -> list[Piece]:
        if stretch.kind == "text":
            return self._sentences.feed(self._marks.feed(self._word_marks.feed(stretch.text)))
        pieces = self._sentences.feed(self._finish_marks())
        if stretch.kind == "span":
            return pieces + self._sentences.feed(stretch.text)
        return [*pieces, *self._sentences.finish(), Piece(stretch.text)]

    def _finish_marks(self) -> str:
        """Return what was held back and became no mark."""
        return self._marks.feed(self._word_marks.finish()) + self._marks.finish()


def begins_after_time(text: str) -> bool:
    """Tell whether a text is the begin of a day's or a time zone's name, or the whole."""
    return any(name.startswith(text) for name in AFTER_TIME)


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
