"""Reads the YAML in front of a text file: the attributes that a document states of itself.

Only plain values come out: text, numbers, booleans, dates as ISO text, and lists of those. What cannot be read states
nothing; a document is never refused for it. Does not know how many attributes a store takes, or how long.
"""

import datetime as dt
from typing import Any

import yaml

MAX_CHARS = 65_536
MAX_BRACKETS = 2_000
MAX_INTEGER = 2**63  # written in hexadecimal, one may have more digits than Python agrees to write


def parse_front_matter(front: str) -> dict[str, Any]:
    """Return what front matter states, by key.

    Args:
        front: The lines between the marks.
    """
    if len(front) > MAX_CHARS or front.count("[") + front.count("{") > MAX_BRACKETS or _has_aliases(front):
        return {}  # aliases can make a page of text stand for gigabytes, and brackets in brackets take seconds
    try:
        values = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # ValueError: a date such as 2024-13-45
        return {}
    if not isinstance(values, dict):
        return {}
    plain = {str(key): _make_plain(value) for key, value in values.items() if _make_plain(key) is not None}
    return {key: value for key, value in plain.items() if value is not None}


def _has_aliases(front: str) -> bool:
    try:
        return any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # ValueError: a sign such as "\UFFFFFFFF"
        return True


def _make_plain(value: object) -> Any:
    if isinstance(value, dt.date):  # a datetime is one too
        return value.isoformat()
    if isinstance(value, list):
        parts = [_make_plain(part) for part in value if not isinstance(part, list)]
        return [part for part in parts if part is not None]
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return None
    return value if isinstance(value, str | bool | int | float) else None
