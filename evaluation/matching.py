"""Whether a text holds another one, however people and models write the same figure, date or word.

Knows writing, not questions: «1,275» is «1275», «**27** days» is «27 days», «March 5th, 2026» is «5 March 2026». What
differs in meaning stays different: «11.4» is not «114», and «27 days» does not stand in «127 days».
"""

import re
from functools import lru_cache

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SHORT_WORD = 3
"""Up to so many letters, an accepted text must be a word of its own: «no» does not stand in «note»."""

_MONTH = rf"(?P<month>{'|'.join(f'{name}|{name[:3]}' for name in MONTHS)}|Sept)\b\.?"
_DAY = r"(?<![\d.,:/-])0?(?P<day>[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:,? (?P<year>\d{4})(?![\d]))?"
DATES = (
    re.compile(rf"{_DAY}(?: of)? {_MONTH}{_YEAR}"),
    re.compile(rf"\b{_MONTH} {_DAY}(?![\d:%]|[.,/-]\d){_YEAR}"),
)
ISO_DATE = re.compile(r"(?<![\d-])(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\d-])")
EMPHASIS = re.compile(r"(\*{1,3}|__|`)(?=\S)(.+?)(?<=\S)\1")
THOUSANDS = re.compile(
    r"(?<![\d.,'’])\d{1,3}(?P<sign>[,'’\u00a0\u2009\u202f])\d{3}(?:(?P=sign)\d{3})*(?!\d|(?P=sign)\d)"
)
SPACED_THOUSANDS = re.compile(r"(?<![\d.,] )(?<![\d.,])\d{1,3}(?: \d{3})+(?! ?\d)")
SPELLINGS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-", "\u00ad": None,
     "\u200b": None, "\ufeff": None}
)  # fmt: skip


@lru_cache(maxsize=4096)
def unify(text: str) -> str:
    """Return a text in one spelling: lower case, no emphasis, plain signs, no thousands separators, «5 march 2026».

    White space becomes single spaces, and goes between a figure and its % or currency sign.
    """
    bare = THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), EMPHASIS.sub(r"\2", text))
    bare = " ".join(bare.translate(SPELLINGS).split())
    bare = re.sub(r"(?<=\d) (?=%)|(?<=[£$€¥]) (?=\d)", "", bare)
    bare = ISO_DATE.sub(lambda found: f"{int(found[3])} {MONTHS[int(found[2]) - 1]} {found[1]}", bare)
    for pattern in DATES:
        bare = pattern.sub(_write_date, bare)
    return bare.casefold()


def _write_date(found: re.Match[str]) -> str:
    month = next(name for name in MONTHS if name.startswith(found["month"][:3]))
    year = found["year"]
    return f"{found['day']} {month}{f' {year}' if year else ''}"


def holds_text(text: str, accepted: str) -> bool:
    """Tell whether a text holds an accepted one, in any of the spellings that mean the same.

    A figure at its ends must not be part of a longer one: «27 days» is not in «127 days», nor «11.4» in «11.40». It
    begins where a word does; one of up to SHORT_WORD letters ends there, too.
    """
    return any(_stands_in(read(accepted), read(text)) for read in READINGS)


def join_thousands(text: str) -> str:
    """Return a text in one spelling in which «1 275» is one figure, «1275»; it may have been meant as two."""
    return SPACED_THOUSANDS.sub(lambda figure: figure[0].replace(" ", ""), unify(text))


READINGS = (unify, join_thousands)
"""How a text may be read: figures beside each other as two, or as one with a space between its thousands."""


def _stands_in(wanted: str, text: str) -> bool:
    pattern = _guard_start(wanted) + re.escape(wanted) + _guard_end(wanted)
    return bool(wanted) and re.search(pattern, text) is not None


def _guard_start(wanted: str) -> str:
    if wanted[:1].isdigit():
        return r"(?<!\d)(?<!\d[.,])(?<!^-)(?<!\s-)"  # «-20» is not «20»; «10-20» ends with it
    return r"(?<![^\W\d_])" if wanted[:1].isalpha() else ""


def _guard_end(wanted: str) -> str:
    if wanted[-1:].isdigit():
        return r"(?!\d)(?![.,]\d)"
    return r"(?![^\W\d_])" if wanted.isalpha() and len(wanted) <= SHORT_WORD else ""
