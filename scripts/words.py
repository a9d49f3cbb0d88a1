"""What the plain commands of operators have in common: KEY=VALUE words, and --help. Does not know any key."""

import difflib
import sys
from collections.abc import Mapping, Sequence

from core.errors import ConfigError


def show_help(words: Sequence[str], text: str | None) -> None:
    """Print a program's own description and end, where -h or --help is among its words.

    Raises:
        SystemExit: 0, after printing.
    """
    if {"-h", "--help"} & set(words):
        print((text or "").strip())
        sys.exit(0)


def describe_word(word: str, wanted: Mapping[str, str], plain: str) -> str:
    """Return why a word cannot be used, in a sentence.

    Args:
        word: As it was typed.
        wanted: What each key takes.
        plain: What a word without a key is.
    """
    key, has_value, value = word.partition("=")
    if key in wanted:
        found = repr(value) if has_value else "no value"
        return f"{key}: wanted {key}={wanted[key]}, found {found}"
    near = difflib.get_close_matches(key.lstrip("-"), wanted, n=1)
    hint = f". Did you mean {near[0]}={wanted[near[0]]}?" if near else ""
    listed = " ".join(f"[{name}={values}]" for name, values in wanted.items())
    return f"wanted {plain} {listed}, found {word!r}{hint}"


def refuse_words(faults: Sequence[str]) -> None:
    """Refuse a command line, with all that is wrong with it at once.

    Raises:
        ConfigError: There are faults.
    """
    if faults:
        raise ConfigError("; ".join(faults) + " (--help tells more)")
