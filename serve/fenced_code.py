"""Code in a text that is still being written: which stretches of it are code, piece by piece as it comes.

Knows blocks between fences and spans between backticks, as Markdown marks them. However the text is cut into pieces,
the result is the same as for the whole. Does not know what is done with the text around it.
"""

import re
from dataclasses import dataclass
from typing import Literal

BACKTICKS_OR_LINE_END = re.compile(r"`+|\n")
LINE = re.compile(r"[^\n]*\n|[^\n]+")

_MARKER = r"(?:[-*+]|\d{1,9}[.)])"
ITEM = re.compile(rf"{_MARKER}(?:[ \t]{{1,4}}|(?=[\r\n]|\Z))")
LINE_BEGIN = re.compile(rf"(?P<indent>[ \t>]*)(?P<items>(?:{ITEM.pattern}){{0,9}})")
"""What stands before a line's own text: blanks, signs of a quotation, numbers and dashes of a list."""
FENCE = re.compile(rf"[ \t>]*(?:{_MARKER}[ \t]+){{0,9}}(?P<run>`{{3,}}(?=[^`\n]*\n?\Z)|~{{3,}})")
"""A line that begins a block of code; no backtick may follow those of a fence."""
FENCE_BEGUN = re.compile(
    rf"[ \t>]*(?:{_MARKER}[ \t]+){{0,9}}(?:[-*+]|\d{{1,9}}[.)]?|`{{1,2}}|`{{3,}}[^`\n]*|~{{1,2}}|~{{3,}}[^\n]*)?\Z"
)
CLOSING_FENCE = re.compile(r"(?P<indent>[ \t>]*)(?P<run>`{3,}|~{3,})[ \t\r]*\n?\Z")
"""A line that may end a block of code."""
CLOSING_FENCE_BEGUN = re.compile(r"[ \t>]*(?:`*|~*)[ \t\r]*\Z")
MAX_FENCE_INDENT = 3
"""Columns; a line further in is no fence."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The next stretch of a text.

    Attributes:
        text: What comes next, backticks included.
        kind: `text`, or code: a `span` within a sentence or a `block` of its own.
    """

    text: str
    kind: Literal["text", "span", "block"]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code that is being written.

    Attributes:
        fence: The backticks or tildes that began it.
        column: Where the text begins that it stands in: 0, or further in within a list's item.
        is_quoted: Whether it stands in a quotation, whose signs stand before each of its lines.
    """

    fence: str
    column: int
    is_quoted: bool

    def is_closed_by(self, line: str) -> bool:
        """Tell whether a line is the block's last."""
        found = CLOSING_FENCE.match(line)
        if found is None or not found["run"].startswith(self.fence) or (">" in found["indent"] and not self.is_quoted):
            return False
        return measure_column(found["indent"]) <= self.column + MAX_FENCE_INDENT


def measure_column(begin: str) -> int:
    """Return how many columns of a line stand before its text, within its quotation if it has one."""
    _, sign, own = begin.rpartition(">")
    return len((own.removeprefix(" ") if sign else own).expandtabs(4))


class CodeSplitter:
    """Parts a stream of text from the code in it, as Markdown marks it.

    Blocks are fenced as in CommonMark 0.31 (section 4.5): three or more backticks or tildes begin a line, at most three
    columns in, and a line of as many of the same or more ends the block, or the text's end does. A list's item moves
    the columns, as do the signs of a quotation; but a line outside of the item, which ends the block in CommonMark,
    does not here, for models leave the indentation of code out. Backticks elsewhere begin a span, which ends with its
    line at the latest.
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._held = ""  # may yet become a fence or more backticks
        self._begins_line = True
        self._span = ""  # the backticks that began the span that is being written
        self._block: Block | None = None
        self._columns: list[int] = []  # where the texts of the list's items begin that the last line stood in

    def feed(self, text: str) -> list[Stretch]:
        """Take the next piece; return what is certain by now."""
        text, self._held = self._held + text, ""
        stretches = []
        for line in LINE.findall(text):
            if self._may_become_fence(line):
                self._held = line
            else:
                stretches += self._take(line)
        return stretches

    def finish(self) -> list[Stretch]:
        """Return what was held back."""
        held, self._held = self._held, ""
        return self._take(held, is_last=True)

    def _may_become_fence(self, line: str) -> bool:
        begun = FENCE_BEGUN if self._block is None else CLOSING_FENCE_BEGUN
        return self._begins_line and not line.endswith("\n") and begun.match(line) is not None

    def _take(self, line: str, *, is_last: bool = False) -> list[Stretch]:
        """Part a line, or the next stretch of one."""
        begins, self._begins_line = self._begins_line, line.endswith("\n")
        if self._block is not None:
            if begins and self._block.is_closed_by(line):
                self._block = None
            return [Stretch(line, "block")]
        if begins:
            self._block = self._open_block(line)
        if self._block is not None:
            return [Stretch(line, "block")]
        if not is_last:  # backticks wait for the character after them
            end = len(line.rstrip("`"))
            line, self._held = line[:end], line[end:]
        return self._part(line)

    def _open_block(self, line: str) -> Block | None:
        """Return the block that a line of text begins, or None; note the items of a list that it stands in."""
        begin = LINE_BEGIN.match(line)
        if begin is None or not line.strip(" \t\r\n>"):  # a blank line leaves a list as it is
            return None
        while self._columns and self._columns[-1] > measure_column(begin["indent"]):
            self._columns.pop()
        for item in ITEM.finditer(line, begin.end("indent"), begin.end()):
            self._columns.append(measure_column(line[: item.end()]) + (not item[0].endswith((" ", "\t"))))
        fence, column = FENCE.match(line), self._columns[-1] if self._columns else 0
        if fence is None or measure_column(line[: fence.start("run")]) > column + MAX_FENCE_INDENT:
            return None
        return Block(fence["run"], column, is_quoted=">" in begin["indent"])

    def _part(self, text: str) -> list[Stretch]:
        """Part text from the spans of code in it."""
        stretches, start = [], 0
        for match in BACKTICKS_OR_LINE_END.finditer(text):
            found = match[0]
            if not self._span and found != "\n":
                stretches.append(Stretch(text[start : match.start()], "text"))
                start, self._span = match.start(), found
            elif self._span and found in (self._span, "\n"):
                stretches.append(Stretch(text[start : match.end()], "span"))
                start, self._span = match.end(), ""
        stretches.append(Stretch(text[start:], "span" if self._span else "text"))
        return [stretch for stretch in stretches if stretch.text]
