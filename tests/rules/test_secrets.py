"""No secret is tracked: tokens of well-known services, private keys, Loam's own keys, long values named as secrets."""

import math
import re
from collections import Counter

import pytest

from tests.rules.checkout import read_text_files

# Put together from pieces, so that this file does not find itself.
KNOWN = {
    "AWS": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{60,}",
    "GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "OpenAI and Anthropic": r"\bsk-(proj-|ant-)?[A-Za-z0-9_-]{24,}",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "Slack": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "npm": r"\bnpm_[A-Za-z0-9]{36}\b",
    "PyPI": r"\bpypi-[A-Za-z0-9_-]{60,}",
    "Loam": r"\bloam-[0-9a-f]{12}-[0-9a-f]{64}\b",
    "a web token": r"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE " + "KEY",
    "a password in a URL": r"\b[a-z][a-z0-9+]{2,}://[^\s/:@'\"<>{}$]+:[^\s/:@'\"<>{}$]{6,}@",
}
NAMED = re.compile(
    r"(?i)\b(?:password|passwd|secret|api_?key|token)\b['\"]?\s*[:=]\s*['\"]([A-Za-z0-9+/=_-]{20,})['\"]"
)
RANDOM_BITS = 3.7
"""Entropy of a character from which on a named value counts as random: most words stay below."""


def is_random(text: str) -> bool:
    """Tell whether a value looks drawn by lot: small and large letters and digits, none of them often."""
    shares = [count / len(text) for count in Counter(text).values()]
    is_mixed = all(re.search(kind, text) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return is_mixed and -sum(share * math.log2(share) for share in shares) > RANDOM_BITS


def find_secrets(texts: dict[str, str]) -> list[str]:
    """Return file, line and kind of each secret; never the secret."""
    found = []
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            kinds = [kind for kind, pattern in KNOWN.items() if re.search(pattern, line)]
            kinds += ["a named value"] * any(is_random(value) for value in NAMED.findall(line))
            found += [f"{path}:{number}: {kind}" for kind in kinds]
    return found


def test_no_secret_is_tracked() -> None:
    assert find_secrets(read_text_files()) == []


@pytest.mark.parametrize(
    "line",
    [
        "AKIA" + "Q3EGRIXMLS7PLT4W", "ghp_" + "a1B2" * 9, "hf_" + "aB3d" * 8, "sk-" + "proj-" + "x7Q2" * 8,
        "loam-" + "0123456789ab-" + "0f" * 32, "-----BEGIN OPENSSH PRIVATE " + "KEY-----",
        "postgresql://loam:" + "hunter2hunter2@db/loam", "api_key = '" + "q8Zr1LkT0vXw3NbYc5Md" + "'",
    ],
)  # fmt: skip
def test_the_rule_sees_each_kind(line: str) -> None:
    assert find_secrets({"a": line})


@pytest.mark.parametrize(
    "line", ["api_key='none'", "token = 'end_of_text_end_of_text'", "http://127.0.0.1:8000", "sk-learn", "loam-serve"]
)
def test_the_rule_lets_harmless_lines_pass(line: str) -> None:
    assert find_secrets({"a": line}) == []
