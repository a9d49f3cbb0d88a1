"""The command that comes next, as a program prints it at its end: ready to be copied, on the same data directory.

Knows how each program is told of a data directory. Does not know what the command is for.
"""

import re
import shlex
from pathlib import Path

from core.layout import default_data_dir

BY_FLAG = frozenset({"scripts/models.py", "scripts/search.py"})
"""Programs that take `--data-dir DIR`."""
BY_PLACE = frozenset({"scripts/doctor.py", "scripts/prune.py"})
"""Programs whose first word is the data directory; all others read Hydra's `paths.data_dir=DIR`."""
PLAIN_VALUE = re.compile(
    r"(?!(?:null|true|false|nan|inf)\Z)(?:[a-z_/]|\.\.?/|\.\.?\Z)[\w./+@%-]*(?: [\w./+@%-]+)*", re.A | re.I
)
"""What Hydra reads as this text without quotes."""


def write_next_command(program: str, *words: str, data_dir: str | Path) -> str:
    """Return a command line, with the data directory unless it is the one that is used without being named.

    Args:
        program: Its path from the project's folder.
        words: What stands behind it, quoted for a shell where that is needed.
        data_dir: The data directory, as the program that prints was given it.
    """
    where = str(data_dir)
    if Path(where) == default_data_dir():
        return " ".join(["python", program, *words])
    if program in BY_PLACE:
        return " ".join(["python", program, shlex.quote(where), *words])
    if program in BY_FLAG:
        return " ".join(["python", program, "--data-dir", shlex.quote(where), *words])
    return " ".join(["python", program, *words, shlex.quote(name_data_dir(where))])


def name_data_dir(where: str) -> str:
    """Return the override that names a data directory, quoted where Hydra would read another one out of it."""
    return f"paths.data_dir={where if PLAIN_VALUE.fullmatch(where) else quote_value(where)}"


def quote_value(value: str) -> str:
    """Return a text as a quoted value of Hydra's command line.

    A backslash counts only before a quote, and there each must be doubled.
    Source: https://hydra.cc/docs/advanced/override_grammar/basic/#quoted-values
    """
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"
