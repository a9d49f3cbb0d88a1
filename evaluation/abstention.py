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
ABSTENTIONS = (
    rf"(?<!you )(?<!they )\b(?:could|can|was|were|am){NOT} (?:find|locate|able to {FINDS})\b",
    rf"\b(?:i|we) (?:could|can){NOT} (?:determine|say|tell|confirm)\b",
    rf"\bunable to {FINDS}\b",
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
    rf"^\W*(?:(?:it|this|that|the answer) (?:is|was) )?(?:not|isn['’]t|wasn['’]t) {TOLD}\W*$|^\W*(?:unknown|n/a)\W*$",
)
"""How an answer says that it has none; regular expressions, upper and lower case alike."""


@functools.cache
def _join_patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def is_abstention(text: str, abstentions: Sequence[str] = ABSTENTIONS) -> bool:
    """Tell whether an answer declines: it says so. An empty answer does not."""
    return _join_patterns(tuple(abstentions)).search(" ".join(text.split())) is not None
