"""How an answer says that it has none: «that is not in the documents», in many words.

Patterns of English; others are added by `abstentions=` of scripts/evaluate.py. Does not know whether it was right to
decline.
"""

import functools
import re
from collections.abc import Sequence

NOT = r" ?(?:not|n['’]t|['’]t)"
SOURCES = r"(?:documents?|passages?|context|sources?|text|handbook|manual|excerpts?|materials?|files?)"
TELLS = (
    "(?:hold|contain|say|state|mention|specif|include|provide|give|answer|cover|list|address|discuss|describe|explain"
    "|tell|indicate|refer)"
)
TOLD = (
    "(?:stated|mentioned|specified|given|provided|included|listed|available|known|found|covered|addressed|discussed|"
    "described|explained|indicated)"
)
FINDS = "(?:find|locate|answer|provide|determine|say|tell|confirm)"
SELF = r"(?:(?:^\W*|[.!?:;,]\W+)|\b(?:i|we|i['’]m|we['’]re|assistant|model|system|search) (?:\w+ )?)"
"""Who speaks of itself: «NASA was unable to locate the tapes» declines nothing."""
ABSTENTIONS = (
    rf"{SELF}(?:could|can|was|were|am){NOT} (?:find|locate|able to {FINDS})\b",
    rf"\b(?:i|we) (?:could|can){NOT} (?:determine|say|tell|confirm)\b",
    rf"{SELF}(?:(?:am|are|is|was|were) )?unable to {FINDS}\b",
    (
        rf"\b(?:can|could|do|does|did){NOT} (?:answer|have|hold|contain|provide|state|say|mention|specify)\b[^.]*"
        r"\b(?:answer|information|details?|question)\b"
    ),
    (
        rf"\b{SOURCES}\b[^.]*?\b(?:do|does|did|is|are|was|were){NOT} (?:(?:actually|explicitly|directly|clearly) )?"
        rf"(?:{TELLS}|available|enough)"
    ),
    rf"\b(?:none of (?:the|these|those)|no|neither)(?: \w+)? {SOURCES} (?:{TELLS})",
    rf"\b(?:is|are|was|were){NOT} (?:(?:actually|explicitly|directly|clearly) )?{TOLD}\b[^.]*\b{SOURCES}\b",
    (
        rf"\b(?:(?:is|are|was|were){NOT}|do(?:es)?{NOT} appear|nothing(?: \w+){{0,4}}) in (?:any of )?"
        rf"(?:the|these|those|my) (?:\w+ )?{SOURCES}\b"
    ),
    rf"\b{SOURCES} (?:(?:is|are) silent|(?:say|contain|hold|mention)s? nothing)\b",
    rf"\b(?:unclear|not clear) from (?:the|these|those) (?:\w+ )?{SOURCES}\b",
    (
        r"\bno (?:information|mention|answer|details?|data|reference)\b(?= (?:is|was|about|on|of|regarding|in|that|to"
        r"|here|for|available|provided|given)\b|\W*$|[.,;!?])"
    ),
    r"\b(?:insufficient|not enough|isn['’]t enough) (?:information|details?|context|data)\b",
    rf"\bi (?:do|am){NOT} (?:know|sure)\b|\bi['’]m not sure\b|\bi am unsure\b",
    r"\bunanswerable\b|\bcannot be (?:answered|determined|found)\b",
    r"\b(?:answer|information|details?|this|that)\b[^.]{0,40}\bcould(?: not|n['’]t) be (?:answered|determined|found)\b",
    rf"^\W*(?:(?:it|this|that|the answer) (?:is|was) )?(?:not|isn['’]t|wasn['’]t) {TOLD}\W*$|^\W*(?:unknown|n/a)\W*$",
)
"""How an answer says that it has none; regular expressions, upper and lower case alike."""
CLAUSE_END = re.compile(
    r"[.!?;:]\s+|,?\s+\b(?:but|however|although|though)\b,?\s*|,\s+(?=(?:maybe|perhaps|probably|possibly|i|it)\b)",
    re.IGNORECASE,
)
GUESSES = (
    r"\b(?:my|an?|the)(?: \w+)? guess\b",
    r"\bi(?:['’]d| would| can only)? (?:guess|estimate)\b",
    r"\bi(?:['’]d| would)? (?:think|believe|assume|suppose|suspect|presume|say)(?: that)? (?:it|the answer)\b",
    r"\b(?:probably|likely|presumably|perhaps|maybe|possibly)\b[^.!?]{0,40}?\d",
    r"\b(?:may|might|could|should|must|would) be (?:about |around |up to |roughly |approximately )?[£$€]?\d",
    r"^\W*(?:so )?(?:it (?:is|was)|it['’]s|the(?: \w+)? answer (?:is|was)) (?:about |up to |exactly )?[£$€]?\d",
)
"""How a clause gives an answer after all, as a guess or flatly, for what it is worth."""


@functools.cache
def _join_patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def is_abstention(text: str, abstentions: Sequence[str] = ABSTENTIONS) -> bool:
    """Tell whether an answer declines: it says so, and does not answer all the same. An empty answer does not."""
    declines = _join_patterns(tuple(abstentions))
    bare = " ".join(text.split())
    if declines.search(bare) is None:
        return False
    guesses = _join_patterns(GUESSES)
    return not any(guesses.search(clause) and not declines.search(clause) for clause in CLAUSE_END.split(bare))
