r"""Spells out what nobody can see, so that a stranger's file name or message stays one line of plain text.

    a line break                                     \x0a
    a byte of a file name that is not UTF-8          \xe9
    a sign that turns the direction of reading       \u202e

Two names that differ are spelled differently. Does not know where names come from.
"""

import json
import re
from typing import Any

# Control characters, line ends, soft hyphens, zero-width and direction marks, lone surrogates, tag characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_LOOKS_SPELLED = re.compile(r"\\(?=[xuU])")
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # where Python keeps bytes of a file name that are not UTF-8


def spell(text: str) -> str:
    r"""Return text in which each unseen sign is written as \x0a, \u202e or \U000e0041.

    A backslash that already looks like the start of such a sign becomes \x5c, so that no two texts come out alike.
    """
    return reveal(_LOOKS_SPELLED.sub(r"\\x5c", text))


def reveal(text: str) -> str:
    """Return text in which each unseen sign is written as `spell` writes it; what is spelled already stays."""
    return _UNSEEN.sub(_spell_sign, text)


def reveal_lines(text: str) -> str:
    """Return text in which all but line ends is revealed: for text that may have several lines."""
    return "\n".join(map(reveal, text.split("\n")))


def _spell_sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:  # above, this form stands for a byte
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def write_line(text: str, max_chars: int) -> str:
    """Return a message on one line: white space squeezed, unseen signs revealed, cut in the middle where it is long."""
    line = reveal(" ".join(text.split()))
    if len(line) <= max_chars:
        return line
    kept = (max_chars - 3) // 2
    return f"{line[:kept]} … {line[-kept:]}"


def dump_line(value: Any) -> str:
    """Return a value as one line of JSON in which unseen signs are escaped, line separators and lone surrogates too."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], line)
