"""Citation marks in words, such as [Source 1]: which ones a model made up, piece by piece as an answer comes.

One goes where each of its numbers is a passage's that the model was given, as [1] does; the gateway then sets its own.
It stays where a passage holds the same words, where it is a link, and where its sentence would fall apart without it
(«as [Source 1] says»). However the text is cut into pieces, the result is the same as for the whole. Does not know
code.
"""

import re
from collections.abc import Sequence

_WORD = r"(?:sources?|documents?|docs?|passages?)"
_BEFORE_NUMBER = rf"{_WORD}[ \t]?[:#]?[ \t]?"
_INNER = rf"{_BEFORE_NUMBER}\d{{1,2}}(?:[ \t]?(?:[,;&\u2013\-]|and)[ \t]?(?:{_BEFORE_NUMBER})?\d{{1,2}}){{0,7}}"
WORD_MARK = re.compile(
    rf"(?<![ \t])[ \t]*(?P<mark>\[\[{_INNER}\]\]|\[{_INNER}\]|\({_INNER}\)|【{_INNER}】)", re.IGNORECASE
)
"""A mark with the blanks in front of it."""
_PREFIX = "|".join(sorted({word[:end] for word in ("sources", "documents", "passages", "and") for end in range(1, 9)}))
WORD_MARK_BEGUN = re.compile(
    rf"(?<![ \t])[ \t]*(?:[\[(【]{{1,2}}(?:{_WORD}(?:{_WORD}|and|[\d \t:#,;&\u2013\-]){{0,80}})?(?:{_PREFIX})?"
    r"[\])】]{0,2}[ \t]*)?\Z",
    re.IGNORECASE,
)
"""The end of a text that may yet become one, or is one and waits for what follows it."""
_LEANING = """
    according also and as at both but by cf from in of on or per see than that the then to under via while with"""
LEANING = frozenset(_LEANING.split())
"""Words that a sentence cannot end a clause with."""
LAST_WORD = re.compile(r"[^\W\d_]+\Z")
CLAUSE_BEGINS = frozenset("\n.!?:…*-–•>#,;(")
"""What stands before the first word of a sentence or clause, blanks aside."""
CONTEXT = 16
"""Characters before a mark that are looked at."""


class WordMarkRemover:
    """Removes the model's own citation marks in words, holding back only what may become one."""

    def __init__(self, passages: Sequence[str]) -> None:
        """Begin an answer.

        Args:
            passages: What the model was given, in its order; the first is number 1.
        """
        self._passages = [passage.casefold() for passage in passages]
        self._held = ""
        self._before = "\n"  # what the text before the held ends with

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain by now."""
        text = self._held + text
        begun = WORD_MARK_BEGUN.search(text)
        end = begun.start() if begun else len(text)
        self._held = text[end:]
        return self._take(text, end)

    def finish(self) -> str:
        """Return what was held back; what follows is code, or nothing."""
        held, self._held = self._held, ""
        text = self._take(held, len(held))
        self._before = "`"
        return text

    def _take(self, text: str, end: int) -> str:
        """Return a text to its end without marks; what stands behind that end is only looked at."""
        taken = WORD_MARK.sub(lambda match: match[0] if self._stays(match, text) else "", text[:end])
        self._before = (self._before + text[:end])[-CONTEXT:]
        return taken

    def _stays(self, match: re.Match[str], text: str) -> bool:
        """Tell whether what looks like a mark belongs to the text."""
        if not names_passages(match["mark"], self._passages) or text.startswith("(", match.end()):
            return True
        before = (self._before + text[: match.start()])[-CONTEXT:]
        word = LAST_WORD.search(before)
        if word is not None and word[0].casefold() in LEANING:
            return True
        following = text[match.end() :].lstrip(" \t")[:1]
        return before[-1] in CLAUSE_BEGINS and (following.islower() or following in (":", ","))


def names_passages(mark: str, passages: Sequence[str]) -> bool:
    """Tell whether a mark's numbers are all passages', none of which holds its words.

    Args:
        mark: As WORD_MARK finds it.
        passages: What the model was given, in small letters.
    """
    numbers = [int(number) for number in re.findall(r"\d+", mark)]
    is_given = all(1 <= number <= len(passages) for number in numbers)
    return is_given and not any(mark.casefold() in passage for passage in passages)


def drop_word_marks(sentence: str, passages: Sequence[str]) -> str:
    """Return what a sentence says without the marks that stayed in it and name passages; arguments as above."""
    return WORD_MARK.sub(lambda match: "" if names_passages(match["mark"], passages) else match[0], sentence)
