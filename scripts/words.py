"""What the plain commands of operators have in common: KEY=VALUE words, and --help. Does not know any key."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.errors import ConfigError
from core.layout import DataDir, default_data_dir


def show_help(words: Sequence[str], text: str | None) -> None:
    """Print a program's own description and end, where -h or --help is among its words.

    Raises:
        SystemExit: 0, after printing.
    """
    if {"-h", "--help"} & set(words):
        print((text or "").strip())
        sys.exit(0)


def parse_words(
    words: Sequence[str], wanted: Mapping[str, str], is_good: Callable[[str, str], bool]
) -> tuple[DataDir, dict[str, str]]:
    """Return the data directory that a command line names, else the usual one, and its values by key.

    Args:
        words: KEY=VALUE, the last of a key counts, and at most one data directory.
        wanted: What each key takes, in words.
        is_good: Told a key and its value, whether they can be used; a word without `=` has the value "".

    Raises:
        ConfigError: Words are none of these; all are named.
    """
    values: dict[str, str] = {}
    faults, folders = [], []
    for word in words:
        key, has_value, value = word.partition("=")
        if is_good(key, value):
            values[key] = value
        elif not has_value and not word.startswith("-"):
            folders.append(word)
        else:
            faults.append(describe_word(word, wanted, "[DATA_DIR]"))
    if len(folders) > 1:
        faults.append(f"DATA_DIR: wanted one data directory, found {' and '.join(folders)}")
    refuse_words(faults)
    return DataDir(Path(folders[0]) if folders else default_data_dir()), values


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
